// What npm's @huggingface/hub does against a registry: node scenarios.mjs ENDPOINT TOKEN OTHER_TOKEN
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [endpoint, accessToken, otherToken] = process.argv.slice(2);
const installed = createRequire(join(process.cwd(), "package.json")).resolve("@huggingface/hub");
const hub = await import(pathToFileURL(installed));
const repo = "alice/from-node";
const common = { hubUrl: endpoint, accessToken, repo };
const bytes = async (blob) => Buffer.from(await blob.arrayBuffer());
const all = async (source) => {
  const found = [];
  for await (const one of source) found.push(one);
  return found;
};

assert.equal((await hub.whoAmI(common)).name, "alice");
await assert.rejects(hub.whoAmI({ hubUrl: endpoint, accessToken: "hf_wrong" }), { statusCode: 401 });

await hub.createRepo({ ...common, private: true });
assert.equal(await hub.repoExists(common), true);
const large = randomBytes(60_000_000);
const files = { "README.md": Buffer.from("---\ntags: [lora]\n---\n"), "a/small.txt": Buffer.from("small"), "w.safetensors": large };
await hub.uploadFiles({
  ...common,
  files: Object.entries(files).map(([path, content]) => ({ path, content: new Blob([content]) })),
});
const listed = await all(hub.listFiles({ ...common, recursive: true }));
assert.deepEqual(
  listed.filter((one) => one.type === "file").map((one) => one.path).sort(),
  [".gitattributes", ...Object.keys(files)].sort(),
);
for (const [path, content] of Object.entries(files))
  assert.ok((await bytes(await hub.downloadFile({ ...common, path }))).equals(content), path);
assert.equal((await hub.fileDownloadInfo({ ...common, path: "w.safetensors" })).size, large.length);
assert.equal((await hub.pathsInfo({ ...common, paths: ["a/small.txt"] }))[0].path, "a/small.txt");
assert.equal(await hub.fileExists({ ...common, path: "gone" }), false);
assert.equal(await hub.downloadFile({ ...common, path: "gone" }), null);

assert.equal(await hub.repoExists({ ...common, accessToken: otherToken }), false);
await assert.rejects(hub.uploadFile({ ...common, accessToken: otherToken, file: { path: "x", content: new Blob(["x"]) } }));

await hub.createBranch({ ...common, branch: "dev/x" });
await hub.uploadFile({ ...common, branch: "dev/x", file: { path: "b.txt", content: new Blob(["on the branch"]) } });
assert.equal(await hub.fileExists({ ...common, path: "b.txt" }), false);
assert.equal(String(await bytes(await hub.downloadFile({ ...common, path: "b.txt", revision: "dev/x" }))), "on the branch");
await hub.deleteBranch({ ...common, branch: "dev/x" });

await hub.deleteFile({ ...common, path: "a/small.txt" });
assert.equal(await hub.fileExists({ ...common, path: "a/small.txt" }), false);
assert.equal((await all(hub.listCommits(common))).length, 3);
const models = await all(hub.listModels({ hubUrl: endpoint, accessToken, search: { owner: "alice", query: "from-node" } }));
assert.deepEqual(models.map((one) => one.name), [repo]);
assert.equal((await hub.modelInfo({ hubUrl: endpoint, accessToken, name: repo })).private, true);

const many = Array.from({ length: 500 }, (_, n) => ({ path: `many/${n}.txt`, content: new Blob([String(n)]) }));
await hub.uploadFiles({ ...common, files: many });
assert.equal((await all(hub.listFiles({ ...common, path: "many" }))).length, 500);
await hub.deleteRepo(common);
assert.equal(await hub.repoExists(common), false);
