"""The ``openai`` engine: any endpoint that speaks OpenAI's API, such as a vLLM server."""
