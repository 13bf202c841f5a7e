"""``hpedge complexity``."""

import json
from typing import Annotated, Any

import typer

from hpdval_edge.commands.extras import import_from
from hpdval_edge.commands.options import Json


def complexity(
    run: Annotated[str | None, typer.Argument(help="A run; else the paper's architecture, random weights.")] = None,
    student: Annotated[str | None, typer.Option(help="A timm model in place of the paper's ViT-B/16.")] = None,
    labels: Annotated[int | None, typer.Option(help="Number of labels; without a run, default 80.")] = None,
    json_: Json = False,
) -> None:
    """Count parameters and multiply-accumulates and time one picture, as Table VII does; nothing is downloaded.

    Examples:

      hpedge complexity

      hpedge complexity runs/birds

      hpedge complexity --student tf_efficientnet_lite0 --labels 20 --json
    """
    result = import_from("train", "training.complexity").complexity(run, student=student, labels=labels)
    typer.echo(json.dumps(result) if json_ else as_text(result))


def as_text(result: dict[str, Any]) -> str:
    """A table of the numbers, each with what it counts."""
    count, work, latency = result["parameters"], result["gmac"], result["latency_ms"]
    rows = [
        ("parameters, teacher (all of CLIP)", f"{count['teacher']:,}"),
        ("parameters, student's encoder", f"{count['encoder']:,}"),
        ("parameters, embedding layer", f"{count['embedding']:,}"),
        ("parameters, prompts", f"{count['prompts']:,}"),
        ("trained in stage 1", f"{count['stage1']:,}"),
        ("trained in stage 2", f"{count['stage2']:,}"),
        ("in memory while training", f"{count['training']:,}"),
        ("deployed", f"{count['deployed']:,} and {count['banks']:,} numbers of cached text"),
        ("as the paper adds up (CLIP + embedding + prompts)", f"{count['paper_count']:,}; the paper 150.28 M"),
        ("GMAC, image path", f"{work['image']:.2f}"),
        ("  encoder, embedding layer, head", f"{work['encoder']:.2f}, {work['embedding']:.3f}, {work['head']:.4f}"),
        ("GMAC, text path, per class", f"{work['text']:.2f}, once for a list of labels"),
        (
            "latency, one picture, text cached",
            f"median {latency['median']:.1f} ms, 10th to 90th percentile {latency['p10']:.1f} to {latency['p90']:.1f}, "
            f"{latency['passes']} passes after warm-up",
        ),
        ("  on", f"{latency['hardware']}, float32, torch {latency['torch']}"),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"{result['model']}, {result['labels']} labels, {result['image_size']} px"
    note = "The paper's 19.55 GFLOPs cannot be rebuilt from its parts: an image and one prompt add up to more."
    return "\n".join([head, *(f"{name.ljust(width)}  {value}" for name, value in rows), note])
