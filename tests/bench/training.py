"""Training speed and memory: our loop beside the plain Hugging Face Trainer, same model, notes, batch and precision.

    python tests/bench/training.py [--steps 12] [--base-model minilm]

Both train NoteLLM (eq. 4) on the sample notes, each in a process of its own. The Trainer does what its users get
without further work: batches padded to their longest note, and logits for every token. The last line is one JSON
object; ``ratio`` is our notes per second over the Trainer's, in this run.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from model.data.samples.generate import sample_notes
from model.network.base_models import open_base, special_ids
from model.network.losses import contrastive_loss, total_loss
from model.network.notellm import NoteLLM, add_embedding_token
from model.recipes import Recipe, small
from model.text.prompt import TEMPLATES, PromptBuilder
from model.training.distributed import Ranks, clip
from model.training.examples import Sampling, TrainingSet
from model.training.loop import parameter_groups
from model.training.step import Step

WARM_STEPS = 2
LOOPS = ("ours", "trainer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps measured, after two that are not")
    parser.add_argument("--rounds", type=int, default=2, help="how often each loop has its turn")
    parser.add_argument("--base-model", default="minilm", help="a base model's name or path")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        print(json.dumps(measure(arguments.loop, arguments.base_model, arguments.steps)))
        return
    # In turns, so that a neighbor's load meets both.
    runs = {loop: [] for loop in LOOPS}
    for _ in range(arguments.rounds):
        for loop in LOOPS:
            runs[loop].append(in_own_process(loop, arguments))
    best = {loop: max(figures, key=lambda one: one["notes_per_second"]) for loop, figures in runs.items()}
    ratio = best["ours"]["notes_per_second"] / best["trainer"]["notes_per_second"]
    memory = best["ours"]["peak_mb"] / best["trainer"]["peak_mb"]
    print(json.dumps({**best, "ratio": round(ratio, 2), "memory_ratio": round(memory, 2)}))


def in_own_process(loop: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--loop", loop, "--steps", str(arguments.steps)]
    command += ["--base-model", arguments.base_model]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(answer.stdout.splitlines()[-1])
    print(loop, figures)
    return figures


def measure(loop: str, base_model: str, steps: int) -> dict[str, float]:
    recipe = replace(small(), base_model=base_model)
    network, training_set = prepared(recipe)
    seconds = (ours if loop == "ours" else trainer)(network, training_set, recipe, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {
        "notes_per_second": round(2 * recipe.pairs_per_batch * steps / seconds, 2),
        "seconds_per_step": round(seconds / steps, 3),
        "peak_mb": round(peak),
    }


def prepared(recipe: Recipe) -> tuple[NoteLLM, TrainingSet]:
    notes = list(sample_notes())
    base = open_base(recipe.base_model, notes)
    special = special_ids(base.tokenizer, base.bos, base.eos, base.pad)
    add_embedding_token(base.backbone, base.tokenizer.get_vocab_size())
    builder = PromptBuilder(
        base.tokenizer, special, TEMPLATES[recipe.template], recipe.title_tokens, recipe.content_tokens
    )
    pairs = [(notes[place].id, notes[place + 1].id) for place in range(0, len(notes) - 1, 2)]
    return NoteLLM(base.backbone, recipe.dim), TrainingSet(notes, pairs, builder)


def ours(network: NoteLLM, training_set: TrainingSet, recipe: Recipe, steps: int) -> float:
    ranks = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network.to(ranks.device)
    optimizer = torch.optim.AdamW(parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    step = Step(network, recipe, ranks)
    sampling = Sampling(recipe.pairs_per_batch, recipe.hashtag_share, recipe.chunk_notes, recipe.seed)
    started = 0.0
    for number in range(WARM_STEPS + steps):
        if number == WARM_STEPS:
            started = now()
        optimizer.zero_grad(set_to_none=True)
        step.backward(training_set.batch(number, sampling), network.log_scale, 0.0)
        clip(network.parameters(), recipe.max_grad_norm)
        optimizer.step()
    return now() - started


class Plain(torch.nn.Module):
    """NoteLLM as a model for the Trainer: labels are -100 where nothing is to be generated."""

    def __init__(self, network: NoteLLM, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.alpha = recipe.alpha

    def forward(self, input_ids, before_emb, labels, related):
        output = self.network.backbone(input_ids=input_ids, output_hidden_states=True, use_cache=False)
        hidden = output.hidden_states[-1]
        emb = self.network.embedding(hidden[torch.arange(len(input_ids)), before_emb])
        contrastive = contrastive_loss(emb, self.network.log_scale, related)
        generation = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return {"loss": total_loss(contrastive, generation, self.alpha)}


def trainer(network: NoteLLM, training_set: TrainingSet, recipe: Recipe, steps: int) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    sampling = Sampling(recipe.pairs_per_batch, recipe.hashtag_share, 2 * recipe.pairs_per_batch, recipe.seed)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == WARM_STEPS:
                marks.append(now())

        def on_train_end(self, args, state, control, **kwargs):
            marks.append(now())

    def collate(numbers):
        batch = training_set.batch(numbers[0], sampling)
        [chunk] = batch.chunks
        order = torch.tensor(chunk.rows).argsort()
        labels = torch.full_like(chunk.ids_CL, -100)
        labels.view(-1)[chunk.predict_T + 1] = chunk.target_T
        return {
            "input_ids": chunk.ids_CL[order],
            "before_emb": chunk.before_emb_C[order],
            "labels": labels[order],
            "related": batch.related,
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=1,  # one item is one batch of pairs
            max_steps=WARM_STEPS + steps,
            learning_rate=recipe.learning_rate,
            bf16=recipe.compute_dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            max_grad_norm=recipe.max_grad_norm,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        Trainer(
            Plain(network, recipe),
            arguments,
            train_dataset=list(range(10_000)),
            data_collator=collate,
            callbacks=[Clock()],
        ).train()
    return marks[1] - marks[0]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
