"""Write a Llama that answers everything with one text: saying_model.py OUT TEXT

The text, of at most 250 characters of ASCII, is cut into pieces that are all different, and each
becomes a token of its own in the tokenizer of tiny_model.py. The weights are not trained: each
piece, and the token after which an answer begins, has a dimension of its own in the embedding, and
the output layer maps it to the piece that follows. Attention and the inner layers add nothing.
"""

import sys
from itertools import pairwise

import torch
from tiny_model import configuration, save, tokenizer
from transformers import LlamaForCausalLM

HIDDEN = 128


def pieces(text):
    """Cuts a text into pieces of two characters, or of as many more as make it another one than those before."""
    found = []
    while text:
        size = 2
        while text[:size] in found and size < len(text):
            size += 1
        found.append(text[:size])
        text = text[size:]
    assert len(set(found)) == len(found) < HIDDEN, found
    return found


def main():
    out, text = sys.argv[1:]
    tok = tokenizer()
    parts = pieces(text)
    tok.add_tokens(parts)
    chain = [tok.convert_tokens_to_ids(token) for token in ("<|assistant|>", *parts, tok.eos_token)]
    model = LlamaForCausalLM(configuration(tok, HIDDEN))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for dimension, (token, following) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[token, dimension] = 1
            model.lm_head.weight[following, dimension] = 10
    save(model, tok, out)


if __name__ == "__main__":
    main()
