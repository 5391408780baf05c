"""The embedded Hub: models in repositories, over the protocol that stock Hub clients speak.

Needs the extra `registry` (starlette, uvicorn, lz4, blake3, pathspec); imported only inside CLI callbacks.

    app.py      ASGI application: addresses to routes, faults to HTTP
    middleware.py around every request: its id, its raw path, the rest of its body
    api.py      routes: identity, repositories, revisions, commits
    download.py routes: files, folders
    lfs.py      routes and rules: which files are large, signed uploads
    multipart.py routes: large files in parts
    storage.py  routes: what histories take up, making them smaller, copying them
    xet.py      routes: the write side of Xet, rebuilt into ordinary large files
    web.py      routes: pages for browsers
    wire.py     requests in and Hub-shaped JSON out
    services.py everything a running registry holds, opened from its folder
    accounts.py users, organisations, tokens
    uploads.py  who has sent which bytes
    quota.py    how many bytes an owner may keep
    auth.py     the database file, tokens in headers, signed links
    repo.py     repositories, references, file trees, permissions
    commits.py  what a commit does to a tree
    rewrite.py  histories made anew
    listing.py  finding repositories
    card.py     what a README says about its repository
    blobs.py    content-addressed files
    database.py SQLite: schema and connections
    page.py, markdown.py   pure: those pages as HTML
    git.py, names.py, xet_format.py, limits.py   pure: ids, names, Xet's formats, what is allowed
    faults.py   the Hub's own kinds of "not found", and the HTTP status of each fault
    run.py      serve until told to stop
    fsck.py, gc.py, backup.py   beside a running registry: is all whole, what can go, a copy
    mirror.py   repositories of other Hubs, copied here
"""
