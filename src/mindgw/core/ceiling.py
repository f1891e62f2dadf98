"""The most tokens that a request can come to, known before any engine has seen it, and the cap on its answer that makes it so.

The prompt's ceiling rests on one fact: the token of a byte-level tokenizer stands for at least one byte of text. So text counts its
bytes in UTF-8, whatever a template may print as JSON counts the bytes of that JSON, and what a template adds by itself is learned. A
shape that nobody here knows counts all its bytes rather than nothing. Media are no text: each counts a flat amount.
"""

import re
from math import ceil
from typing import Any

import msgspec
from msgspec import Raw, Struct

#: Tokens of one image. What engines take by default: 256 (Gemma 3), 576 to 2,880 (LLaVA), about 2,400 (Phi-3), up to 4,096 (llama.cpp
#: with Qwen-VL). vLLM lets Qwen-VL have 16,384, for pictures of 3,584 x 3,584; whoever serves those sets more.
IMAGE = 4096
#: Tokens of one sound: two minutes and three quarters at 25 a second (Qwen-Audio); others take 6 to 13 a second.
AUDIO = 4096
#: Tokens of one film, as vLLM allots them to Qwen-VL.
VIDEO = 16384
#: Tokens that a template puts around each message: its role, its marks, its line ends.
MESSAGE = 16

#: The most that a template is believed to add by itself; an engine that reports more does not count as others do.
MOST_OVERHEAD = 4096
#: More answers than this are not believed; far fewer are allowed (`payload.peek`, and the agent for `best_of`).
MOST_ANSWERS = 1024
#: Models whose overhead is remembered.
MODELS = 1024

#: The cap of an answer that nothing bounds.
MOST_OUTPUT = 2**31 - 1
#: The two names that the cap of an answer has, and one that llama.cpp puts above both.
CAPS = ("max_tokens", "max_completion_tokens")
_PREDICT = "n_predict"

#: Fields that never become part of a prompt. All others count their bytes.
_SETTINGS = frozenset(
    "best_of dimensions encoding_format frequency_penalty ignore_eos keep_alive logit_bias logprobs max_completion_tokens max_tokens "
    "metadata min_p min_tokens model n n_predict parallel_tool_calls presence_penalty prompt_cache_key repetition_penalty "
    "safety_identifier seed service_tier stop store stream stream_options temperature top_k top_logprobs top_p user".split()
)
#: Fields of a part of a message that hold media, and the kind.
_MEDIA = {
    "image_url": "image", "image": "image", "input_image": "image",
    "audio_url": "audio", "audio": "audio", "input_audio": "audio",
    "video_url": "video", "video": "video", "input_video": "video",
}  # fmt: skip
#: Where inline media stand inside such a field.
_INLINE = ("url", "data")
_DATA_URL = re.compile(r"data:(?:image|audio|video)/", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]*", re.ASCII)
#: Characters of a text by which it is told whether it is base64.
_LOOK = 256
_KINDS = ("image", "audio", "video")

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.encode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Ceiling(Struct, frozen=True, gc=False):
    """What a request brings with it, and how many answers it wants."""

    #: Bytes of text; a prompt of token ids counts one for each.
    text_bytes: int
    #: Messages of a chat, or prompts, or texts to embed.
    messages: int = 0
    #: Bytes of what may be printed as JSON: tools, schemas, fields that nobody here knows.
    tools_bytes: int = 0
    images: int = 0
    sounds: int = 0
    films: int = 0
    #: Answers that the engine makes: for each prompt as many as `n` or `best_of` says. An output cap is for one of them.
    answers: int = 1

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.sounds or self.films)

    def tokens(self, overhead: int = 0, *, image: int = IMAGE, audio: int = AUDIO, video: int = VIDEO) -> int:
        """The most tokens of the prompt; `overhead` is what the model's template adds by itself (`Overheads`)."""
        text = self.text_bytes + self.tools_bytes + MESSAGE * self.messages + overhead
        if self.has_media:
            text += image * self.images + audio * self.sounds + video * self.films
        return text


def prompt_ceiling(body: bytes, endpoint: str) -> Ceiling:
    """Reads the body of a valid request; `endpoint` is chat, completions or embeddings. Never raises: what cannot be read counts whole."""
    try:
        document = _decode(body)
    except _UNREADABLE:
        document = _by_field(body)
    tally = _Tally()
    if type(document) is not dict:
        tally.add_unread(body)
        document = {}
    prompts = 1
    for name, value in document.items():
        if name in _SETTINGS:
            continue
        if name == "messages" and type(value) is list:
            tally.add_messages(value)
        elif name in {"prompt", "input"}:
            count = tally.add_prompts(value)
            prompts = count if name == "prompt" and endpoint == "completions" else prompts
        else:
            tally.json += len(name) + _size(value)
    answers = prompts * max(_count(document.get("n")), _count(document.get("best_of")))
    return Ceiling(tally.text, tally.messages, tally.json, tally.image, tally.audio, tally.video, answers)


class _Tally:
    """What was found in a body so far; the fields of media have the names of `_KINDS`."""

    __slots__ = ("audio", "image", "json", "messages", "text", "video")

    def __init__(self) -> None:
        self.text = self.json = self.messages = self.image = self.audio = self.video = 0

    def add_messages(self, messages: list[Any]) -> None:
        self.messages += len(messages)
        text = 0
        for message in messages:
            if type(message) is not dict:
                self.add_unread(_encode(message))
                continue
            for name, value in message.items():
                if type(value) is str:
                    text += len(value) if value.isascii() else len(value.encode())
                elif name == "content" and type(value) is list:
                    self._add_parts(value)
                elif value is not None:
                    text += _size(value)
                if name not in {"role", "content"}:
                    text += len(name)
        self.text += text

    def _add_parts(self, parts: list[Any]) -> None:
        for part in parts:
            if type(part) is dict:
                self._add_part(part)
            else:
                self.text += _size(part)

    def _add_part(self, part: dict[str, Any]) -> None:
        kinds = []
        for name, value in part.items():
            if name in _MEDIA:
                kinds.append(_MEDIA[name])
                self.text += _beside_media(value)
                continue
            self.text += _size(value) if type(value) is not str else len(value) if value.isascii() else len(value.encode())
            if name not in {"type", "text"}:
                self.text += len(name)
        named = part.get("type")
        if not kinds and type(named) is str and named != "text":
            # the field has a name that nobody here knows, such as Anthropic's `source`: its bytes are counted, and it is one of its kind
            kinds = [kind for kind in _KINDS if kind in named]
        for kind in kinds:
            setattr(self, kind, getattr(self, kind) + 1)

    def add_unread(self, raw: bytes) -> None:
        """What this reader cannot make sense of may be plain to an engine with a laxer one: all of it counts, and what may be media."""
        self.text += len(raw)
        lowered = raw.lower()
        for kind in _KINDS:
            setattr(self, kind, getattr(self, kind) + lowered.count(kind.encode()))

    def add_prompts(self, value: Any) -> int:
        """Counts a prompt, or a list of them, or of token ids; returns how many prompts there are."""
        if type(value) is not list or not value or type(value[0]) is int:
            self._add_prompt(value)
            return 1
        for prompt in value:
            self._add_prompt(prompt)
        return len(value)

    def _add_prompt(self, prompt: Any) -> None:
        self.messages += 1
        if type(prompt) is str:
            self.text += len(prompt) if prompt.isascii() else len(prompt.encode())
        elif type(prompt) is list:
            self.text += sum(1 if type(token) is int else _size(token) for token in prompt)
        else:
            self.text += _size(prompt)
            # llama.cpp takes pictures and sounds beside a text, and says of neither which it is
            media = prompt.get("multimodal_data") if type(prompt) is dict else None
            self.image += len(media) if type(media) is list else 0


def _size(value: Any) -> int:
    """Bytes of a value as JSON. A template may put a blank after each comma and colon; those are no tokens of their own."""
    return len(_encode(value))


def _beside_media(value: Any) -> int:
    """Bytes of a field of media without the media."""
    if type(value) is str:
        return 0 if _is_media(value) else _size(value)
    if type(value) is not dict:
        return _size(value)
    return sum(0 if name in _INLINE and type(item) is str and _is_media(item) else len(name) + _size(item) for name, item in value.items())


def _is_media(text: str) -> bool:
    return _DATA_URL.match(text) is not None or _BASE64.fullmatch(text, 0, _LOOK) is not None


def _count(value: Any) -> int:
    # some engines take 8.0 for 8
    return ceil(value) if type(value) in {int, float} and 1 < value <= MOST_ANSWERS else 1


def _by_field(body: bytes) -> Any:
    """The fields of a body that cannot be read whole, because of a number that is too large for instance."""
    try:
        return {name: _readable(value) for name, value in _decode_fields(body).items()}
    except _UNREADABLE:
        return None


def _readable(value: Raw) -> Any:
    """A value, or a list of what can be read in it and the bytes of the rest, or else its bytes."""
    try:
        return _decode(value)
    except _UNREADABLE:
        raw = bytes(value)
    return [_readable(item) for item in _decode_list(raw)] if raw.startswith(b"[") else value


# -- what templates add ------------------------------------------------------------------------------------------------


class Overheads:
    """What the templates of models add to a prompt, learned from what engines report. Bounded: the model that taught nothing for the
    longest time is forgotten."""

    def __init__(self) -> None:
        #: The most that a model's engine reported beyond the ceiling, by model, the one that taught last at the end.
        self._most: dict[str, int] = {}

    def of(self, model: str) -> int:
        """Tokens to be put on top of a ceiling; 0 as long as nothing is known."""
        return self._most.get(model, 0)

    def learn(self, model: str, ceiling: Ceiling, reported: int) -> None:
        """An engine reported so many tokens of a prompt with that ceiling. Prompts with media teach nothing about templates."""
        beyond = min(reported - ceiling.tokens(), MOST_OVERHEAD)
        if beyond <= self.of(model) or ceiling.has_media:
            return
        self._most.pop(model, None)
        self._most[model] = beyond
        if len(self._most) > MODELS:
            del self._most[next(iter(self._most))]


# -- the cap of an answer ----------------------------------------------------------------------------------------------


def cap(asked: int | None, default: int | None, context: int | None, guess: int, *, answers: int = 1, left: int | None = None) -> int:
    """Tokens that each of the `answers` may have; 0 when the budget leaves none, and then nothing is to be asked of an engine.

    `asked` is the caller's cap, `default` the policy's for those who set none; None for none. `left` is what the budget leaves for all
    answers together, the prompt's ceiling taken off; None for a budget that is looked at later. `guess` is the prompt's tokens, rather
    too few than too many: with its ceiling instead, the answer to a long prompt would be cut though the model's `context` has room. What
    does not fit there at all is for the engine to refuse. Without any bound it is MOST_OUTPUT.
    """
    # an engine that is asked for 0 tokens makes one
    most = max(asked, 1) if asked is not None else MOST_OUTPUT if default is None else default
    if context is not None:
        most = min(most, max(context - guess, 1))
    if left is not None:
        most = min(most, left // max(answers, 1))
    return max(most, 0)


def with_cap(body: bytes, cap: int, field: str = CAPS[0]) -> bytes:
    """The body of a valid request with this cap on each answer, in `field` when it has none.

    A body that names no cap stays byte for byte as it is but for the new field at its end. Otherwise every name that an engine may take
    for a cap says the same: keys that only differ in case too, for some engines (Go's JSON) do not care; of keys that stand there twice
    the last is left. The values of other fields stay byte for byte. Raises ValueError for what is no JSON object.
    """
    try:
        fields = _decode_fields(body)
    except _UNREADABLE:
        raise ValueError("a cap can only be put into a JSON object") from None
    folded = "\n".join(fields).casefold()
    if "max_" in folded or _PREDICT in folded:
        names = [name for name in fields if (plain := name.casefold()) in CAPS or plain == _PREDICT]
    else:
        names = []
    if not names:
        return add_cap(body, cap, field, first=not fields)
    capped = Raw(b"%d" % cap)
    for name in names:
        if name.casefold() != _PREDICT or not _is_within(fields[name], cap):
            fields[name] = capped
    if fields.keys().isdisjoint(CAPS):
        fields[field] = capped
    return _encode(fields)


def add_cap(body: bytes, cap: int, field: str = CAPS[0], *, first: bool = False) -> bytes:
    """The same, of a body that is known to name none; `first`: it names nothing at all."""
    return b'%b%b"%b":%d}' % (body[: body.rindex(b"}")], b"" if first else b",", field.encode(), cap)


def is_capped(body: bytes, cap: int) -> bool:
    """Whether whatever a valid request says of a cap, under any name that an engine may take for one, is no more than `cap`."""
    fields = _decode_fields(body)
    return all(_is_within(value, cap) for name, value in fields.items() if (plain := name.casefold()) in CAPS or plain == _PREDICT)


def _is_within(value: Raw, cap: int) -> bool:
    """Whether a field limits the answer to no more than `cap` by itself."""
    number = bytes(value)
    return number.isdigit() and len(number) < 20 and int(number) <= cap
