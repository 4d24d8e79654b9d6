"""One case on disk or S3: an Arrow IPC file of compressed bricks, made for reading patches.

The file opens with `pyarrow.ipc.open_file` alone. It holds a record batch for each 64³ brick, along a Hilbert
curve, with the binary columns `image` and `label` (null where the case has none). A payload is the brick's
32³ blocks one after another, each a blosc2 chunk of the block's voxels: (C, d, h, w) of the image, (d,
h, w) of the label. A block whose voxels are all equal takes no bytes. Metadata:

- of the schema: `fedvox.case` (`CaseHeader` as JSON), `fedvox.layout` (`CaseLayout` as JSON);
- of the footer: `fedvox.blocks` (an Arrow IPC stream, a row a block: offset, size, CRC-32 and base value of
  image and label), `fedvox.foreground` (an Arrow IPC stream: a bounded sample of each structure's voxels),
  `fedvox.crc`.

So one read of the file's tail tells where every voxel lies; a patch is a few merged range reads after that,
no Arrow message is parsed, and only the touched blocks are decoded.
"""

from fedvox.data.block_codec import CODECS, Codec
from fedvox.data.case_header import FORMAT_VERSION, CaseHeader, CaseLayout
from fedvox.data.case_reader import CaseReader
from fedvox.data.case_writer import CaseFileInfo, write_case

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "CaseFileInfo",
    "CaseHeader",
    "CaseLayout",
    "CaseReader",
    "Codec",
    "write_case",
]
