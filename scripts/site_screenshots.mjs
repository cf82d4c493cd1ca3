// Renders pages in headless Chromium, on a desktop and on a phone, light and dark; saves what they look like and
// tells accessibility faults (axe-core) and pages that are wider than the screen.
//
//     node scripts/site_screenshots.mjs build/site runs/rose/report.html [--out build/screenshots] [--only tutorials]
//
// It needs Chromium (apt-get install chromium, or its path in CHROMIUM), node 18 or newer, and the network once, for
// the two packages below. It ends with 1 if there is a serious or critical fault.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, relative, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const PACKAGES = { "playwright-core": "1.65.1", "axe-core": "4.14.1" };
const WIDTHS = { desktop: 1280, phone: 390 };
const SCHEMES = ["light", "dark"];
const SERIOUS = new Set(["serious", "critical"]);
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"];
FLAGS.push("--disable-background-networking", "--disable-component-update");

function packages(folder) {
  const wanted = Object.entries(PACKAGES).map(([name, version]) => `${name}@${version}`);
  const there = (name) => {
    const file = join(folder, "node_modules", name, "package.json");
    return existsSync(file) && JSON.parse(readFileSync(file)).version === PACKAGES[name];
  };
  if (!Object.keys(PACKAGES).every(there)) {
    mkdirSync(folder, { recursive: true });
    execFileSync("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, ...wanted], { stdio: "inherit" });
  }
  return createRequire(resolve(folder, "node_modules", "x.js"));
}

// Pairs of a page's name and its file: of a folder, all pages in it.
function pagesOf(path) {
  if (!statSync(path).isDirectory()) return [[join(basename(resolve(path, "..")), basename(path)), path]];
  const files = readdirSync(path, { recursive: true }).filter((name) => name.endsWith(".html"));
  return files.sort().map((name) => [relative(path, join(path, name)), join(path, name)]);
}

// What a picture cannot show: axe's faults, scripts that fail, and how much wider than the screen the page is.
async function faultsOf(page, errors) {
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"], preload: false }));
  const faults = violations.flatMap(({ id, impact, help, nodes }) =>
    nodes.map(({ target, failureSummary }) => ({ id, impact, help, target: target.join(" "), why: failureSummary })),
  );
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (wider > 1) faults.push({ id: "too-wide", impact: "serious", help: `the page is ${wider} pixels wider than the screen` });
  return [...faults, ...errors.map((text) => ({ id: "script", impact: "serious", help: text }))];
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { out: { type: "string", default: "build/screenshots" }, only: { type: "string", default: "" } },
  });
  if (positionals.length === 0) throw new Error("name the pages: node scripts/site_screenshots.mjs build/site");
  const require = packages("build/node");
  const { chromium } = require("playwright-core");
  const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");
  const pages = positionals.flatMap(pagesOf).filter(([name]) => name.includes(values.only));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
  const found = [];
  for (const [kind, width] of Object.entries(WIDTHS)) {
    for (const colorScheme of SCHEMES) {
      const options = { viewport: { width, height: 900 }, colorScheme, reducedMotion: "reduce" };
      const context = await browser.newContext(options);
      for (const [name, file] of pages) {
        const page = await context.newPage();
        const errors = [];
        page.on("pageerror", (error) => errors.push(error.message));
        page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
        await page.goto(pathToFileURL(resolve(file)).href);
        await page.evaluate(axe);
        const picture = join(values.out, `${kind}-${colorScheme}`, name.replace(/\.html$/, ".png"));
        mkdirSync(join(picture, ".."), { recursive: true });
        await page.screenshot({ path: picture, fullPage: true });
        const faults = await faultsOf(page, errors);
        found.push(...faults.map((fault) => ({ page: name, kind, colorScheme, ...fault })));
        await page.close();
      }
      await context.close();
    }
  }
  await browser.close();
  writeFileSync(join(values.out, "faults.json"), JSON.stringify(found, null, 1));
  const counts = {};
  for (const { id, impact, help } of found) {
    const line = `${impact}: ${id}: ${help}`;
    counts[line] = (counts[line] ?? 0) + 1;
  }
  for (const [line, count] of Object.entries(counts)) console.log(`${count} x ${line}`);
  console.log(`${pages.length} pages, pictures and faults.json in ${values.out}`);
  process.exitCode = found.some(({ impact }) => SERIOUS.has(impact)) ? 1 : 0;
}

await main();
