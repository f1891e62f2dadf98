"""`mindgw why`: the story of a request in sentences."""

from typing import Annotated

import typer

from mindgw.cli.groups import verb
from mindgw.cli.invocation import invocation
from mindgw.cli.telling import answers, fetched, heading, moments

app = verb()


@app.command("why")
def why(
    ctx: typer.Context,
    request: Annotated[str, typer.Argument(metavar="ID", help="Id of a request, as its client has it in x-mindgw-request-id.")],
) -> None:
    """Tell what became of a request: which worker had it and why, where its time went, who paid: mindgw why req-1a2b"""
    run = invocation(ctx)
    story = fetched(run, request)
    if run.options.output != "table" or run.options.quiet:
        run.render.item(story, (), name="id")
        return
    run.render.datum(heading(story))
    run.render.datum("")
    for line in moments(story):
        run.render.datum(line)
    run.render.datum("")
    for question, answer in answers(story):
        run.render.datum(f"{question:<15}  {answer}")
