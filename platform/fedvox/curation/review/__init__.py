"""The review page: people look at what the checks found and decide, in a browser. Needs the extra `web`.

    guard.py      who may speak to the server at all: host, origin, size, headers
    sessions.py   who is signed in, with which role, and what they may take back
    views.py      what the page is told of a case; a second reader is not told what the first one did
    slices.py     planes of images and label maps as bytes
    decisions.py  accept, choose, reject, edit, undo; what a conflict changed
    routes.py     addresses
    launch.py     socket, address with its token, uvicorn

The page draws on plain canvases (`static/planes.js`): what a reviewer needs is three planes with outlines, for which
the server sends voxels and the browser needs neither WebGL nor a megabyte of viewer.
"""
