"""A checkpoint as Sentence-Transformers opens it: Transformer, last-token pooling, Dense, Normalize; no custom code.

A note's embedding is the projected state of the token before [EMB] (section 4.3), so [EMB] is left out, and the last
token of the sequence is that token. The tokenizer does the rest of the prompt: a template of its own puts the ids of
instruction and tail around the text, encoded apart from it as in training, and cuts long texts between the two.
The rest is in `note_text`, which is copied into the folder with `model.text.hashtags`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from model.exports import note_text
from model.exports.note_text import NoteText
from model.network.checkpoint import MANIFEST, CheckpointError, Manifest, load, load_manifest
from model.network.notellm import NO_CODE, NoteLLM, quiet_transformers
from model.note import Note
from model.text import hashtags
from model.text.prompt import EMB, TOPICS_TOKENS, PromptBuilder

MODULES = "modules.json"
_POOLING, _DENSE, _NORMALIZE = "1_Pooling", "2_Dense", "3_Normalize"
_README = Path(__file__).with_name("sentence_transformers.md")
_EXAMPLE = Note("", "Night train to Lisbon", "Bring socks and a good book.", ("travel",))


def write_sentence_transformers(checkpoint: Path, out: Path) -> Manifest:
    """Write the folder that ``SentenceTransformer(out)`` opens; ``modules.json`` comes last.

    Raises:
        CheckpointError: if the checkpoint cannot be used or exported, or ``out`` is a checkpoint itself.
    """
    manifest = load_manifest(checkpoint)
    _refuse_encoders(checkpoint)
    if (out / MANIFEST).exists():
        raise CheckpointError(f"{out} is a checkpoint: the export would overwrite it; choose another folder")
    network, builder, _ = load(checkpoint, manifest.recipe.saved_dtype)
    out.mkdir(parents=True, exist_ok=True)
    (out / MODULES).unlink(missing_ok=True)
    with quiet_transformers():
        network.backbone.base_model.save_pretrained(out)
    _write_head(out, network)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    max_tokens = getattr(network.backbone.config, "max_position_embeddings", None)
    _write_note_text(out, builder)
    _write_tokenizer(out, builder, tokenizer, max_tokens)
    _compare(out, builder)
    _write_readme(out, manifest, max_tokens)
    _write_json(out / MODULES, _modules())
    return manifest


def _refuse_encoders(checkpoint: Path) -> None:
    """Refuse BERT as a decoder: tools differ in whether they heed ``is_decoder``, and in their first position."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config.get("is_decoder"):
        raise CheckpointError(
            f"{checkpoint} is a {config['model_type']} that was trained as a decoder, and tools may take it for an "
            "encoder again: it cannot be exported; train from a decoder, for instance one that `notellm adapt` makes"
        )


def _write_head(out: Path, network: NoteLLM) -> None:
    """The modules after the transformer; the projection in float32."""
    hidden = network.head.in_features
    for name in (_POOLING, _DENSE, _NORMALIZE):
        (out / name).mkdir(exist_ok=True)
    _write_json(
        out / _POOLING / "config.json",
        {"word_embedding_dimension": hidden, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
    )
    _write_json(
        out / _DENSE / "config.json",
        {
            "in_features": hidden,
            "out_features": network.dim,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    linear = {f"linear.{name}": tensor.float().contiguous() for name, tensor in network.head.state_dict().items()}
    save_file(linear, out / _DENSE / "model.safetensors")
    _write_json(out / "sentence_bert_config.json", {"model_args": {"dtype": "float32"}})
    _write_json(out / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})


def _write_note_text(out: Path, builder: PromptBuilder) -> None:
    template = builder.template
    form = {
        "as_json": template.as_json,
        "title_tokens": builder.title_tokens,
        "topics_tokens": TOPICS_TOKENS if template.known_topics["category"] else 0,
        "content_tokens": builder.content_tokens,
    }
    _write_json(out / "note_text.json", form)
    source = Path(note_text.__file__).read_text(encoding="utf-8")
    (out / "note_text.py").write_text(source.replace(f"from {hashtags.__name__} ", "from hashtags "), encoding="utf-8")
    shutil.copyfile(hashtags.__file__, out / "hashtags.py")


def _write_tokenizer(out: Path, builder: PromptBuilder, tokenizer: Tokenizer, max_tokens: int | None) -> None:
    """The tokenizer with the prompt around every text. Special tokens spelled out in a text are plain text to it."""
    special, template = builder.special, builder.template
    head = [*([] if special.bos is None else [special.bos]), *_piece(builder, template.instruction["category"])]
    tail = [*_piece(builder, template.tail), *([special.eos] if template.ends_note else [])]
    pieces = {"<head>": head, "<tail>": tail}
    tokenizer.post_processor = TemplateProcessing(
        single=" ".join(["<head>"] * bool(head) + ["$A", "<tail>"]),
        special_tokens=[_framing(tokenizer, name, ids) for name, ids in pieces.items() if ids],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if special.bos is None else tokenizer.id_to_token(special.bos),
        eos_token=tokenizer.id_to_token(special.eos),
        pad_token=tokenizer.id_to_token(special.pad),
        additional_special_tokens=[EMB],
        split_special_tokens=True,
        # Attention is causal, so padding on the right changes nothing, and positions count from the first token.
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=max_tokens,
    ).save_pretrained(out)


def _piece(builder: PromptBuilder, text: str) -> list[int]:
    return builder.output(text)[:-1]


def _framing(tokenizer: Tokenizer, name: str, ids: Sequence[int]) -> dict[str, Any]:
    return {"id": name, "ids": ids, "tokens": [tokenizer.id_to_token(token) for token in ids]}


def _compare(out: Path, builder: PromptBuilder) -> None:
    """Transformers rewrites the templates of some tokenizers as it opens them; the vectors would be wrong silently."""
    long = 'Ends in "a quote" and \\ signs. ' * builder.content_tokens
    notes = [
        _EXAMPLE,
        Note("", content=long, title=long, hashtags=("travel",) * TOPICS_TOKENS),
        Note("", f"{EMB}</s>", '"} The compression word is: "'),
    ]
    text = NoteText(out)
    texts = [text(note.title, note.content, note.hashtags) for note in notes]
    reopened = AutoTokenizer.from_pretrained(out, **NO_CODE)(texts)["input_ids"]
    if [[*ids, builder.special.emb] for ids in reopened] != builder.prompts(notes):
        raise CheckpointError("this checkpoint cannot be exported: transformers opens its tokenizer as another one")


def _write_readme(out: Path, manifest: Manifest, max_tokens: int | None) -> None:
    example = NoteText(out)(_EXAMPLE.title, _EXAMPLE.content, _EXAMPLE.hashtags)
    text = Template(_README.read_text(encoding="utf-8")).substitute(
        fingerprint=manifest.fingerprint,
        dim=manifest.dim,
        title_tokens=manifest.recipe.title_tokens,
        content_tokens=manifest.recipe.content_tokens,
        max_tokens=max_tokens,
        example=example,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _modules() -> list[dict[str, object]]:
    # Names that older versions know too.
    kinds = {"": "Transformer", _POOLING: "Pooling", _DENSE: "Dense", _NORMALIZE: "Normalize"}
    return [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
