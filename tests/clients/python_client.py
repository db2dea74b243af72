"""A critique and a comparison for another program, with nothing but the base install.

usage: python python_client.py CRITIC_ADDRESS JUDGE_ADDRESS CONSTITUTION < case.json
"""

import json
import sys

from solon.client import Conversation, Sampling
from solon.client.sync import CriticClient, JudgeClient

critic_address, judge_address, constitution = sys.argv[1:]
case = json.load(sys.stdin)
asked = Conversation.from_user(case["prompt"])
with CriticClient(critic_address) as critic:
    critique = critic.critique(
        asked,
        case["response_a"],
        constitution=constitution,
        principle_id=case["principle"],
        sampling=Sampling(seed=7),
    )
with JudgeClient(judge_address) as judge:
    verdict = judge.compare(
        asked, case["response_a"], case["response_b"], constitution=constitution
    )
answer = {
    "critique": critique.critique.text,
    "digests": [critique.constitution_digest, verdict.constitution_digest],
    "weight_versions": [critique.weight_version, verdict.weight_version],
    "probability_a": verdict.probability_a,
    "by_principle": {one.principle_id: one.probability_a for one in verdict.principles},
}
print(json.dumps(answer))
