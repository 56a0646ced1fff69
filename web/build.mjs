// Builds the page into dist/. With --check nothing is written: it fails where dist/ is not what the sources give.
import { build } from "esbuild";
import { readFile, writeFile, mkdir, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "dist");

const built = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.tsx" },
  bundle: true,
  minify: true,
  write: false,
  outdir: dist,
  format: "iife",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "inline",
  charset: "utf8",
  logLevel: "warning",
});
const files = new Map(built.outputFiles.map((file) => [file.path.slice(dist.length + 1), Buffer.from(file.contents)]));
for (const name of ["index.html", "icon.svg"]) files.set(name, await readFile(join(here, "src", name)));

if (process.argv.includes("--check")) {
  const differing = [];
  for (const [name, content] of files) {
    const found = await readFile(join(dist, name)).catch(() => Buffer.alloc(0));
    if (!found.equals(content)) differing.push(name);
  }
  const others = (await readdir(dist)).filter((name) => !files.has(name));
  if (differing.length > 0 || others.length > 0) {
    for (const name of differing) console.error(`web/dist/${name} is not what web/src gives`);
    for (const name of others) console.error(`web/dist/${name} comes from no source`);
    console.error("help: web/build, and commit web/dist");
    process.exit(1);
  }
  console.log("web/dist is what web/src gives");
} else {
  await mkdir(dist, { recursive: true });
  for (const [name, content] of files) {
    await writeFile(join(dist, name), content);
    console.log(`web/dist/${name}: ${content.length} bytes`);
  }
}
