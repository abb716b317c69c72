"""What the demo's server takes at most, and why: a device has little memory, and its network is no friend."""

from __future__ import annotations

MAX_BODY = 16 << 20
"""Bytes of an upload. A phone's photo of 12 to 24 megapixels has 3 to 12 MB; the page shrinks larger ones."""
MAX_PIXELS = 16_000_000
"""Of an upload, as its header says, before anything is decoded. Decoded and made float it takes about 20
bytes a pixel for a moment, 320 MB. A phone's canvas can hold as many, so the page can shrink larger ones."""
MAX_UPLOADS = 4
"""Being read or waiting for their turn; one is classified at a time. Each may hold MAX_BODY."""
MAX_GROWTH_MB = 512
"""What the process may grow by, whatever it is sent: MAX_UPLOADS bodies, one decoded picture, the tables of
resizing that are kept (at most 115 MB), connections, and what the allocator does not give back."""
MAX_JSON = 4096
"""Bytes of a request to switch, which names a variant and a backend."""
MAX_HEAD = 16 << 10
"""Bytes of a request's line and headers: twice what browsers send with many cookies."""
MAX_CONNECTIONS = 128
"""Open sockets, well under the usual 1024 files of a process. One more closes the one that has waited longest
without a whole request, so that half requests never keep others out."""
MAX_VIEWERS = 16
"""Pages that show the live picture; each takes a send buffer and a little of a core."""
HEAD_S = 10.0
"""From a connection, or from the first byte of a later request, to the end of its headers."""
BODY_S = 30.0
"""For a whole body: 16 MiB at 0.6 MB/s, a poor Wi-Fi."""
STALL_S = 15.0
"""Without a reader taking anything of what waits for it."""
KEEP_ALIVE_S = 5
"""A connection without a request; a browser opens another by itself."""
LINGER_S = 1.0
"""After a refusal in the middle of a body what still comes is thrown away for so long: closing at once would
reset the connection, and the client would see that instead of the reason."""
LINGER_BYTES = 1 << 20
"""And at most so much of it."""
SEND_BUFFER = 256 << 10
"""Bytes on their way to a viewer: about five pictures. The system's own buffer grows to megabytes, and a slow
viewer would see the past."""
MAX_SHOWN_PER_S = 40
"""Pictures encoded for viewers: a camera's 30 with room for its unevenness. A quick network classifies
hundreds a second, and nobody sees them."""
MAX_SHOWN_SIDE = 960
"""Pixels of the longer side of a picture that viewers get; what is classified is never made smaller."""
HEARTBEAT_S = 1.0
"""Between two messages where no new picture comes; the page takes 4 s of silence for a lost connection."""
