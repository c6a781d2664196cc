"""The model card of a zoo entry, as Markdown: every number in it comes from card.json, none is typed.

It opens with the front matter that model hubs read (huggingface.co/docs/hub/model-cards): licence, tags, and the scores
as a model index.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

LIMITS = {
    "min": "at least",
    "max": "at most",
    "max_drop": "drop at most",
    "max_rise": "rise at most",
    "max_ratio": "ratio at most",
}
PAIRED = ("psnr", "ssim", "lpips")
MADE = "This page is made from card.json."


def readme(card: Mapping[str, Any]) -> str:
    """README.md of an entry."""
    drawn = card.get("drawn") or []
    lines = [*_front_matter(card), f"# {card['name']}", ""]
    lines += [*_whole_model(card, drawn)] if drawn else [f"A variant of `{card['component']}`. {MADE}", ""]
    if card["preview"]:
        pairs = "In each pair left the uncompressed model" if drawn else "Left the uncompressed model"
        ours = "these files in their runtime" if drawn else "this file in its runtime"
        lines += [f"![sample]({card['preview']})", "", f"{pairs}, right {ours}.", ""]
    lines += _drawn(drawn)
    lines += _facts(card["facts"])
    lines += ["## Gates", "", *_table(("judged", "gate", "value", "limit", ""), [_gate(v) for v in card["verdicts"]])]
    files = [(name, f["bytes"], f"`{f['sha256']}`") for name, f in sorted(card["files"].items())]
    lines += ["## Files", "", *_table(("file", "bytes", "SHA-256"), files)]
    lines += ["## Made with", "", *_table(("package", "version"), sorted(card["tools"].items()))]
    lines += [f"Licence of the weights: {card['licence']}.", ""]
    how = "How it was judged" if drawn else "How it was made"
    lines += [f"{how}: recipe.yaml. To check it: `mdcompress zoo verify ZOO_DIR`.", ""]
    return "\n".join(lines)


def _whole_model(card: Mapping[str, Any], drawn: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a bundle is, and the command that draws with it."""
    form, words = drawn[0]["format"], json.dumps(drawn[0]["prompt"], ensure_ascii=False)
    return [
        f"A text-to-image model in one folder ({form}): text encoder, UNet and decoder with their settings. {MADE}",
        "",
        f"    mdcompress generate {words} --model FOLDER --out picture.png",
        "",
    ]


def _drawn(drawn: Sequence[Mapping[str, Any]]) -> list[str]:
    if not drawn:
        return []
    rows = [(s["prompt"], s["seed"], f"![picture]({s['picture']})") for s in drawn]
    return ["## Samples", "", *_table(("prompt", "seed", "drawn by these files"), rows)]


def _front_matter(card: Mapping[str, Any]) -> list[str]:
    """YAML; every string is written as JSON, which YAML 1.2 reads as it is."""
    formats = sorted({sample["format"] for sample in (*card["samples"], *card.get("drawn", ()))})
    tags = ["mdcompress", "latent-diffusion", card["component"].rpartition("/")[2], *formats]
    lines = ["---", f"license: {json.dumps(card['licence'])}", "library_name: mdcompress"]
    lines += ["pipeline_tag: text-to-image"] if card.get("drawn") else []
    lines += [f"base_model_name: {json.dumps(card['component'])}", "tags:", *(f"  - {json.dumps(tag)}" for tag in tags)]
    scores = [(key, value) for key, value in sorted(card["facts"].items()) if key.endswith("_mean")]
    if scores:
        lines += ["model-index:", f"  - name: {json.dumps(card['name'])}", "    results:"]
        lines += ["      - task: {type: text-to-image}", "        metrics:"]
        for key, value in scores:
            lines += [f"          - type: {key.removesuffix('_mean')}", f"            value: {json.dumps(value)}"]
    return [*lines, "---", ""]


def _facts(facts: Mapping[str, Any]) -> list[str]:
    """Scores beside the uncompressed model's first, then everything else."""
    paired = {m: (f"{m}_mean_of_teacher", f"{m}_mean") for m in PAIRED}
    paired = {m: keys for m, keys in paired.items() if facts.keys() >= set(keys)}
    rows = [(f"{m.upper()}, mean", *(_number(facts[key]) for key in keys)) for m, keys in paired.items()]
    shown = {key for keys in paired.values() for key in keys}
    lines = _table(("to the photographs", "uncompressed", "this variant"), rows) if rows else []
    others = [(key, value) for key, value in sorted(facts.items()) if key not in shown]
    return lines + _table(("fact", "value"), others)


def _gate(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    metric = verdict.get("metric", "")
    net = f" ({verdict['net']})" if verdict.get("net") else ""
    if metric == "achieved":
        what = f"achieved: {verdict.get('statistic', '')}"
    else:
        owner = "uncompressed model's " if verdict.get("of") == "reference" else ""
        what = f"{owner}{metric}{net}, {verdict.get('statistic', '')}"
    limit = LIMITS.get(verdict.get("kind", ""), "limit")
    value = "exact" if verdict.get("exact") else _number(verdict.get("value"))
    state = "passed" if verdict.get("passed") else "failed"
    return str(verdict.get("subject", "")), what, value, f"{limit} {_number(verdict.get('limit'))}", state


def _number(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{int(value)}" if isinstance(value, int | float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)] + [""]
