"""What Flower loads of this app: `[tool.flwr.app.components]` in pyproject.toml names the two attributes.

Flower puts an unpacked app's root on Python's path, and not the three source roots in it. Whatever version happened to
be installed on the node would run, under the name of the one that was sent. So the roots come first here, and a package
that was imported from elsewhere before is refused.

Flower reads this file without running it: the apps must be made here, by plain calls.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"fedvox": "platform", "fedvox_federation": "federation", "fedvox_compliance": "compliance"}

server = ServerApp()
client = ClientApp()


def use_this_bundle() -> None:
    """Put the bundle's source roots first on the path.

    Raises:
        ImportError: one of its packages was imported from another place already.
    """
    for package, folder in PACKAGES.items():
        root = ROOT / folder
        if str(root) not in sys.path[: len(PACKAGES)]:
            sys.path.insert(0, str(root))
        loaded = getattr(sys.modules.get(package), "__file__", None)
        if loaded is not None and not Path(loaded).resolve().is_relative_to(root):
            raise ImportError(f"{package} was imported from {loaded}; the app that was sent is {ROOT}")


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the federation that the run configuration names."""
    use_this_bundle()
    from fedvox_federation.config import from_run_config
    from fedvox_federation.server.app import serve as serve_federation

    serve_federation(grid, from_run_config(context.run_config, ROOT))


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take part in a round."""
    use_this_bundle()
    from fedvox_federation.client.app import answer

    return answer(message, context, ROOT)


@client.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which clinic this is."""
    use_this_bundle()
    from fedvox_federation.client.app import introduce as introduce_clinic

    return introduce_clinic(message, context, ROOT)
