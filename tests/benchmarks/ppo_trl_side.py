"""TRL 1.11's side of ``ppo_against_trl``: runs in an environment of its own, knows no Solon.

python ppo_trl_side.py SETTINGS.json
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Curve(TrainerCallback):
    """Keeps what the trainer logs."""

    def __init__(self, clock: str) -> None:
        """An empty curve. ``clock``: ``wall``, or ``cpu`` for this process's time."""
        self.rows: list[dict[str, float]] = []
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = self.now()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep a row."""
        logs = kwargs["logs"]
        if "objective/scores" in logs:
            self.rows.append(
                {
                    "episode": logs["episode"],
                    "scores": logs["objective/scores"],
                    "kl": logs["objective/kl"],
                    "seconds": self.now() - self.started,
                }
            )


def main() -> None:
    """Train, and write the curve."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
    prompts = pq.read_table(settings["prompts"]).column("prompt").to_pylist()
    texts = [
        tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    dataset = Dataset.from_dict({"input_ids": ids})

    def classifier() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(settings["reward"], num_labels=1)

    curve = Curve(settings["clock"])
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=settings["output"],
            seed=settings["seed"],
            total_episodes=settings["episodes"],
            # 1.11 samples so many episodes at a time, and divides them into the minibatches
            per_device_train_batch_size=settings["batch_size"],
            gradient_accumulation_steps=1,
            num_mini_batches=settings["minibatches"],
            num_ppo_epochs=settings["epochs"],
            local_rollout_forward_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="linear",
            kl_coef=settings["kl_coefficient"],
            response_length=settings["max_response_tokens"],
            temperature=1.0,
            gamma=1.0,
            lam=0.95,
            missing_eos_penalty=1.0,
            stop_token="eos",
            num_sample_generations=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(settings["model"]),
        ref_model=AutoModelForCausalLM.from_pretrained(settings["model"]),
        reward_model=classifier(),
        value_model=classifier(),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(1)),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[curve],
    )
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(settings["result"]).write_text(json.dumps({"rows": curve.rows, "peak_mib": peak}))


if __name__ == "__main__":
    main()
