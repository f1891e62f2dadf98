"""What `mindgw agent join` is told about a box besides who it is: the options, and the settings that they make."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from mindgw_agent import errors

EngineUrlOption = Annotated[
    list[str] | None, typer.Option("--engine-url", metavar="URL", help="Root of an engine, once for each; else the usual ports are tried.")
]
EngineOption = Annotated[
    str, typer.Option("--engine", metavar="KIND", help="What the first is: auto, llamacpp, ollama, vllm, sglang, lmstudio or generic.")
]
EngineKeyOption = Annotated[Path | None, typer.Option("--engine-key-file", metavar="FILE", help="The engine's own API key.")]
ExecOption = Annotated[
    str,
    typer.Option("--exec", metavar="COMMAND", help="Run the engine, too: begun with the agent, anew when it ends, ended with it."),
]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=1, max=4096, help="Requests at a time, per engine; else what the engine says.")
]
ModelsOption = Annotated[
    str | None, typer.Option("--models", metavar="GLOB,...", help="Offer these models alone, as in 'llama3*,qwen*'; '' for all again.")
]
TeamsOption = Annotated[
    str | None,
    typer.Option("--teams", metavar="TEAM,...", help="Work for these teams alone (ORG/TEAM: of another organisation); '' for all again."),
]
PullOption = Annotated[
    bool | None, typer.Option("--allow-pull/--no-allow-pull", help="Whether operators of the server may have models fetched.")
]


def chosen(
    urls: list[str] | None, kind: str, key_file: Path | None, command: str, slots: int | None, lists: tuple[str | None, str | None],
    may_pull: bool | None,
) -> dict[str, Any]:  # fmt: skip
    """What was said, by the settings that it changes; nothing else changes. `lists`: models and teams. Raises `Misuse`."""
    said: dict[str, Any] = {}
    if urls:
        if len(set(urls)) < len(urls):
            raise errors.Misuse("--engine-url names an engine twice", hint="once for each engine; --slots says how many requests it takes")
        said |= {"engine_url": urls[0], "other_engines": urls[1:]}
    if kind:
        said["engine_kind"] = "" if kind == "auto" else kind
    if key_file is not None:
        said["engine_key_file"] = str(key_file.expanduser().absolute())
    if command:
        said["engine_command"] = _findable(command)
    if slots is not None:
        said["slots"] = slots
    for name, text in zip(("models", "teams"), lists, strict=True):
        if text is not None:
            said[name] = [part.strip() for part in text.split(",") if part.strip()]
    if may_pull is not None:
        said["may_pull"] = may_pull
    return said


def _findable(command: str) -> str:
    """With the whole path of its program, where that can be found now: a service looks for programs elsewhere, and from elsewhere."""
    try:
        program, *words = shlex.split(command)
    except ValueError:
        return command  # whoever runs it says what is wrong with it
    found = shutil.which(program)
    return command if found is None or os.path.isabs(program) else shlex.join([os.path.abspath(found), *words])
