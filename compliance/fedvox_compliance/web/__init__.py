"""The questionnaire as a web form on this computer, for people who do not use a terminal. Needs the extra `web`.

    guard.py      who may speak to the server at all: host, origin, size, headers
    state.py      the open assessment, one lock, sessions
    views.py      what a page shows
    actions.py    what a form does
    routes.py     addresses
    launch.py     socket, address with its token, uvicorn

Pages are rendered here and work without script; with it, answers are saved as they are given.
"""
