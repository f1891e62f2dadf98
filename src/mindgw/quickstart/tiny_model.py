"""Writes the tiny model of the quickstart and of the tests: a valid llama-architecture GGUF with random weights.

It knows nothing and babbles readable English words. Three tricks make it behave like a model all the same:
- hidden channel 0 is a constant (no layer writes to it), so the output matrix can raise or silence a token for good;
- every prefix of every word is a token, so that SentencePiece's pairwise merges can reach the whole word;
- the end token has a fixed push (`eos`), so answers end by themselves and `finish_reason` is sometimes "stop".
The same parameters give the same bytes on every machine.
"""

from pathlib import Path

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray

VOCABULARY = (
    "i you he she we it they this that here there now then when where who what why how and or but if so because although while "
    "until a an the some any each every no not only also just even still again always never soon later once twice one two three "
    "four five six seven is are was were be been has have had do does did can could will would may might must should go goes went "
    "come came see saw look find found make made take took give gave keep kept hold held think thought know knew say said tell told "
    "ask asked answer wait waits begin began end small large old new young warm cold bright dark quiet loud slow fast early late "
    "near far high low long short round open box bridge cloud corner door field fire flower forest friend gate hand harbour hill "
    "house island lamp letter line machine map market mountain night number ocean paper path picture place question rain road room "
    "root sea shadow ship signal sky snow song star station story street table tower town train tree tunnel valley voice wall watch "
    "water wave way wheel wind window winter wood word work world year in on at by to of for from with over under into through "
    "between around against toward beyond across before after"
).split()

#: What the tokenizer writes for a space.
SPACE = "\u2581"
BOS, EOS, OPEN_TURN, CLOSE_TURN, THINK, END_THINK, CALL = "<s>", "</s>", "<|turn|>", "<|end|>", "<think>", "</think>", "<tool_call>"

#: The push that keeps a token from ever being said.
SILENT = -60.0

#: The shape of Qwen's: llama.cpp learns from it how this model would write thoughts and tool calls.
TEMPLATE = (
    "{%- if tools %}<|turn|>system\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|end|>\n{% endif -%}"
    "{%- for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>"
    """{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}"""
    "<|end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|turn|>assistant\n%THINK%{% endif -%}"
)

Floats = NDArray[np.float32]


class Shape(msgspec.Struct, frozen=True):
    """How big and how talkative a model is. The default is under 1 MB and answers faster than a network does."""

    name: str = "tiny-babbler"
    #: Width; a multiple of 8. 768 with 8 layers gives some tens of tokens a second on one CPU core.
    embd: int = 64
    layers: int = 2
    feed_forward: int = 128
    context: int = 8192
    #: The push of the end token: at 16 an answer ends after some dozens of words, at -60 only at `max_tokens`.
    eos: float = 14.0
    #: True makes a model that reasons first: its turn opens inside <think> and it closes that by itself sooner or later.
    thinks: bool = False
    seed: int = 20


class Token(msgspec.Struct, frozen=True):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: gguf.TokenType
    #: The constant part of its logit, in units of the constant channel.
    push: float


def write(path: Path, shape: Shape | None = None) -> Path:
    """Write the model to `path` and return it. Its directory must exist; the file appears in one step, whole."""
    shape = shape or Shape()
    partial = path.with_name(path.name + ".partial")
    tokens = vocabulary(shape)
    writer = gguf.GGUFWriter(partial, "llama")
    _describe(writer, shape, tokens)
    for name, values in _weights(shape, tokens):
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


def vocabulary(shape: Shape) -> list[Token]:
    """Control tokens, then the 256 bytes, then the pieces of words; the longer a piece, the earlier it merges."""
    kinds = gguf.TokenType
    tokens = [Token("<unk>", 0.0, kinds.UNKNOWN, SILENT), Token(BOS, 0.0, kinds.CONTROL, SILENT), Token(EOS, 0.0, kinds.CONTROL, shape.eos)]
    tokens += [Token(text, 0.0, kinds.CONTROL, SILENT) for text in (OPEN_TURN, CLOSE_TURN)]
    tokens += [Token(text, 0.0, kinds.USER_DEFINED, SILENT) for text in (THINK, CALL)]
    tokens.append(Token(END_THINK, 0.0, kinds.USER_DEFINED, shape.eos if shape.thinks else SILENT))
    tokens += [Token(f"<0x{byte:02X}>", 0.0, kinds.BYTE, SILENT) for byte in range(256)]
    push = {SPACE + word: 0.0 for word in VOCABULARY} | {".": 1.0, ",": 0.5}
    pieces = [SPACE, "\n", *map(chr, range(33, 127))]
    for word in VOCABULARY:
        pieces += [(SPACE + word)[:size] for size in range(2, len(word) + 2)]
    for rank, piece in enumerate(dict.fromkeys(pieces)):
        tokens.append(Token(piece, 16.0 * len(piece) - 4096.0 - rank / 1024, kinds.NORMAL, push.get(piece, SILENT)))
    return tokens


def _describe(writer: gguf.GGUFWriter, shape: Shape, tokens: list[Token]) -> None:
    heads = max(1, shape.embd // 16)
    writer.add_name(shape.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(max(1, heads // 2))
    writer.add_rope_dimension_count(shape.embd // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.text.encode() for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([int(token.kind) for token in tokens])
    names = [token.text for token in tokens]
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(names.index(BOS))
    writer.add_eos_token_id(names.index(EOS))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE.replace("%THINK%", THINK + "\n" if shape.thinks else ""))


def _weights(shape: Shape, tokens: list[Token]) -> list[tuple[str, Floats]]:
    """Name and values of every tensor, in the order in which the random numbers are drawn."""
    dice = np.random.default_rng(shape.seed)

    def draw(rows: int, columns: int, spread: float) -> Floats:
        return (dice.standard_normal((rows, columns)) * spread).astype(np.float32)

    heads = max(1, shape.embd // 16)
    spread = 2 / shape.embd**0.5  # keeps the constant channel's share, so `eos` means the same in every size
    kv_width = max(1, heads // 2) * (shape.embd // heads)
    embedding = draw(len(tokens), shape.embd, 1.0)
    embedding[:, 0] = 4.0
    output = draw(len(tokens), shape.embd, 2 * spread)
    output[:, 0] = [token.push for token in tokens]
    fixed = [index for index, token in enumerate(tokens) if token.text in (EOS, END_THINK)]
    output[fixed, 1:] = 0.0
    tensors = [("token_embd.weight", embedding), ("output.weight", output), ("output_norm.weight", np.ones(shape.embd, dtype=np.float32))]
    for layer in range(shape.layers):
        block: dict[str, Floats] = {norm: np.ones(shape.embd, dtype=np.float32) for norm in ("attn_norm", "ffn_norm")}
        block |= {"attn_q": draw(shape.embd, shape.embd, spread), "attn_k": draw(kv_width, shape.embd, spread)}
        block |= {"attn_v": draw(kv_width, shape.embd, spread), "attn_output": draw(shape.embd, shape.embd, spread)}
        block |= {"ffn_gate": draw(shape.feed_forward, shape.embd, spread), "ffn_up": draw(shape.feed_forward, shape.embd, spread)}
        block["ffn_down"] = draw(shape.embd, shape.feed_forward, 2.2 / shape.feed_forward**0.5)
        block["attn_output"][0] = block["ffn_down"][0] = 0.0  # nothing writes to the constant channel
        tensors += [(f"blk.{layer}.{name}.weight", values) for name, values in block.items()]
    return tensors
