CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE users (
    name TEXT PRIMARY KEY COLLATE NOCASE, created_at TEXT NOT NULL, xet_epoch TEXT NOT NULL
) WITHOUT ROWID;

-- A token is stored as its sha256: whoever reads the database cannot log in with it.
CREATE TABLE tokens (
    digest TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users, created_at TEXT NOT NULL
) WITHOUT ROWID;

-- pipeline_tag, library_name, card and repo_tags are read from the README of main at each commit.
CREATE TABLE repos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, owner TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    pipeline_tag TEXT, library_name TEXT, card TEXT NOT NULL DEFAULT '{}',
    UNIQUE (kind, owner, name)
);
CREATE TABLE repo_tags (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, tag TEXT NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (repo, tag)
) WITHOUT ROWID;

CREATE TABLE commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT,
    tree TEXT NOT NULL, author TEXT NOT NULL, title TEXT NOT NULL, description TEXT NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (repo, oid)
) WITHOUT ROWID;
CREATE TABLE refs (
    repo INTEGER NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('branch', 'tag')), name TEXT NOT NULL,
    oid TEXT NOT NULL,
    PRIMARY KEY (repo, kind, name), FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE
) WITHOUT ROWID;

-- The whole tree of each commit: one look-up per question, at some hundred bytes per file and commit.
CREATE TABLE files (
    repo INTEGER NOT NULL, oid TEXT NOT NULL, path TEXT NOT NULL,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, git_id TEXT NOT NULL, lfs INTEGER NOT NULL,
    changed_in TEXT NOT NULL,
    PRIMARY KEY (repo, oid, path), FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX files_by_sha256 ON files (sha256);

-- Who has sent which bytes: naming a hash is no proof of having the file, so it opens nothing by itself.
CREATE TABLE held (
    user TEXT NOT NULL REFERENCES users, kind TEXT NOT NULL CHECK (kind IN ('blob', 'xorb')),
    digest TEXT NOT NULL,
    PRIMARY KEY (user, kind, digest)
) WITHOUT ROWID;
