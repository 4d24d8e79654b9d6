"""What runs in the sandbox: `python -I adapters/__main__.py ADAPTER_AS_JSON IMAGES OUTPUT`.

Isolated (-I), so that no variable and no folder of the submission decides what is imported.
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[3])
)  # the code beside this file is the code that runs

from fedvox.benchmark.adapters.launch import run_adapter
from fedvox.errors import FedvoxError

if __name__ == "__main__":
    try:
        run_adapter(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except FedvoxError as error:
        sys.exit(f"{error.message}\n{error.remedy}")
