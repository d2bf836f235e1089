"""Text that models write after prompts, several at once, in batches whose shape no neighbour changes.

A prompt is filled up on its left to a length that follows from its own alone, and shares a batch only with prompts of
that length (and, where there are pictures, of the same number and size of them). Every batch has the same number of
rows. Decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEAST_TOKENS = 64


def padded_length(tokens: int) -> int:
    """The length that a prompt of so many tokens is filled up to.

    It is always longer: with a mask of ones alone transformers takes another way through attention, so that the bits of
    one row would hang on whether its neighbours are filled up. Steps grow with the length, so that few lengths occur.
    """
    step = max(_LEAST_TOKENS, (1 << tokens.bit_length() - 1) // 8)
    return (tokens // step + 1) * step


def written_after(
    network: Any, prompts: Sequence[Mapping[str, Any]], rows: int, most_tokens: int, pad: int
) -> list[list[int]]:
    """The tokens that a network writes after each prompt, up to and without the one that ends it.

    Args:
        network: a transformers model that generates.
        prompts: what its processor made of each prompt alone: torch tensors, of which ``input_ids`` is [1, L], those of
            that shape belong to the tokens, and the others (pictures) are joined along their first axis.
        rows: prompts in a batch; the last batch is filled up.
        most_tokens: to be written.
        pad: the token that fills up; it is masked.
    """
    filled_up = [_filled_up(prompt, pad) for prompt in prompts]
    alike: dict[Any, list[int]] = {}
    for number, prompt in enumerate(filled_up):
        shapes = tuple(sorted((name, tuple(x.shape)) for name, x in prompt.items()))
        alike.setdefault(shapes, []).append(number)
    ends = _ends(network)
    found: dict[int, list[int]] = {}
    for members in alike.values():
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            whole = batch + batch[:1] * (rows - len(batch))
            tokens_BL = _generate(network, [filled_up[number] for number in whole], most_tokens)
            for number, row in zip(batch, tokens_BL, strict=False):
                found[number] = row[: next((n for n, token in enumerate(row) if token in ends), len(row))]
    return [found[number] for number in range(len(prompts))]


def _filled_up(prompt: Mapping[str, Any], pad: int) -> dict[str, Any]:
    import torch

    ids_1L = prompt["input_ids"]
    tensors = {"attention_mask": torch.ones_like(ids_1L), **prompt}
    more = padded_length(ids_1L.shape[1]) - ids_1L.shape[1]
    return {
        name: torch.nn.functional.pad(x, (more, 0), value=pad if name == "input_ids" else 0)
        if x.shape == ids_1L.shape
        else x
        for name, x in tensors.items()
    }


def _generate(network: Any, prompts: Sequence[Mapping[str, Any]], most_tokens: int) -> list[list[int]]:
    import torch

    batch = {name: torch.cat([prompt[name] for prompt in prompts]).to(network.device) for name in prompts[0]}
    with torch.inference_mode():
        tokens_BL = network.generate(**batch, max_new_tokens=most_tokens, do_sample=False, num_beams=1)
    return tokens_BL[:, batch["input_ids"].shape[1] :].tolist()


def _ends(network: Any) -> set[int]:
    """Tokens that end a text; what comes after is there only because another row went on."""
    ends = network.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}
