"""The embedded Hub: models in repositories, over the protocol that stock Hub clients speak.

Needs the extra `registry` (starlette, uvicorn, lz4, blake3, pathspec); imported only inside CLI callbacks.

    app.py      ASGI application: routing on the raw path, faults to HTTP
    api.py      routes: identity, repositories, revisions, commits
    download.py routes: files, folders
    lfs.py      routes and rules: which files are large, signed uploads
    xet.py      routes: the write side of Xet, rebuilt into ordinary large files
    wire.py     requests in and Hub-shaped JSON out
    services.py everything a running registry holds, opened from its folder
    auth.py     users, tokens, signed links
    repo.py     repositories, references, file trees, permissions
    commits.py  what a commit does to a tree
    listing.py  finding repositories
    card.py     what a README says about its repository
    blobs.py    content-addressed files
    database.py SQLite: schema and connections
    git.py, names.py, xet_format.py   pure: object ids, allowed names, Xet's binary formats
    faults.py   the Hub's own kinds of "not found", and the HTTP status of each fault
    run.py      serve until told to stop
"""
