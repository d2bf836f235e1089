"""A CLIP of a few thousand parameters, written by transformers itself."""

from pathlib import Path


def save_tiny_clip(directory: Path) -> Path:
    """Write it, its tokenizer and its image processor, which takes 32 px."""
    import torch
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 40,
        "max_position_embeddings": 12,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval().save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghij",
        *[f"##{c}" for c in "abcdefghij"],
        "red",
        "blue",
        "disc",
        "moves",
    ]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(directory)
    return directory
