"""Write a tiny random-weight Llama with its own tokenizer: make_tiny_model.py OUT [--seed 0]

2 layers, hidden size 64, 4 heads of 32 (2 KV heads), vocabulary 2048, 2048 positions, bfloat16:
360,768 parameters, under 1 MB.  (Heads of 16 load, but vLLM's CPU attention refuses them at the
first request and the engine dies: it takes 32, 64, 80, 96, 112, 128, ...)  Deterministic: the
tokenizer (byte-level BPE) is trained on the text of the Python standard library's
pydoc_data.topics, the weights come from --seed (the same Python, torch and tokenizers give the same
bytes).  What it says is noise; it is a real model for a real engine.  The chat template is the
simplest one with roles.
"""

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' }}{{ m['content'] if m['content'] else '' }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tok.train_from_iterator((topics[k] for k in sorted(topics)), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def configuration(tok, hidden_size, **others):
    """Of a Llama of two layers whose heads vLLM's attention on the processor takes."""
    return LlamaConfig(
        vocab_size=len(tok),
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        **ends(tok),
        **others,
    )


def ends(tok):
    """The tokens where a text begins and ends."""
    return {
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }


def save(model, tok, out):
    """Writes both, without defaults for sampling: what a request leaves out is then the engine's own default."""
    model.generation_config = GenerationConfig(**ends(tok))
    model.save_pretrained(out)
    tok.save_pretrained(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("out")
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    tok = tokenizer()
    torch.manual_seed(a.seed)
    model = LlamaForCausalLM(configuration(tok, 64, initializer_range=0.2)).to(torch.bfloat16)
    save(model, tok, a.out)
    print(a.out, sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
