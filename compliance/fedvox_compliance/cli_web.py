"""`serve`: the questionnaire as a web form on this computer."""

from __future__ import annotations

from typing import Annotated

import typer

from fedvox_compliance.cli_common import FolderArgument, LanguageOption, show_disclaimer

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: fedvox-compliance serve clinic-a --language de --open")
def serve(
    folder: FolderArgument,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any free port.")] = 0,
    host: Annotated[str, typer.Option("--host", help="Only 127.0.0.1 is served.")] = "127.0.0.1",
    language: LanguageOption = "en",
    max_upload_mib: Annotated[
        int, typer.Option("--max-upload-mib", min=1, max=256, help="Limit of one document.")
    ] = 25,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Also open it in the default browser.")
    ] = False,
) -> None:
    """Answer in a web form, in a browser on this computer. Nothing leaves it.

    Every answer is saved as it is given. The address that is printed holds a token which is new at every start.
    """
    from fedvox_compliance.web.launch import serve as serve_form

    show_disclaimer(language)
    serve_form(
        folder,
        host=host,
        port=port,
        language=language,
        max_upload_mib=max_upload_mib,
        open_browser=open_browser,
    )
