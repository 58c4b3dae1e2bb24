// Opens pages in Chromium at several widths, light and dark, and prints as JSON what axe, the console and a keyboard find:
//   node look.cjs FOLDER PAGE.html ...
// FOLDER takes a picture of the top of each; "" takes none. Needs the npm packages puppeteer-core and axe-core.
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const BROWSER = process.env.CHROMIUM || "/usr/bin/chromium";
const puppeteer = require("puppeteer-core");
const axe = require("axe-core");

const LOOKS = [1280, 390].flatMap((width) => ["light", "dark"].map((scheme) => ({ width, scheme })));

async function look(browser, file, folder, { width, scheme }) {
  const tab = await browser.newPage();
  const complaints = [];
  tab.on("console", (message) => complaints.push(`${message.type()}: ${message.text()}`));
  tab.on("pageerror", (error) => complaints.push(String(error)));
  await tab.setViewport({ width, height: width < 600 ? 844 : 900 });
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.goto(pathToFileURL(file).href, { waitUntil: "load" });
  if (folder) {
    const name = `${path.basename(file, ".html")}-${width}-${scheme}`;
    const whole = process.env.WHOLE === "1";
    await tab.screenshot({ path: path.join(folder, `${name}.webp`), type: "webp", quality: 60, fullPage: whole });
  }
  await tab.evaluate(axe.source);
  const found = await tab.evaluate(() => globalThis.axe.run());
  const measured = await tab.evaluate(() => {
    const drawn = [...document.querySelectorAll("svg text")].map((text) => {
      const svg = text.ownerSVGElement;
      return (parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width) / svg.viewBox.baseVal.width;
    });
    const figures = [...document.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect().width);
    return {
      type: drawn.length ? Math.min(...drawn) : null,
      figure: figures.length ? Math.min(...figures) : null,
      overflow: document.documentElement.scrollWidth - innerWidth,
    };
  });
  const scrolled = await tab.evaluate(() =>
    [...document.querySelectorAll(".wide")].filter((box) => box.scrollWidth > box.clientWidth).length);
  const reached = new Set();
  for (let press = 0; press < 60; press++) {
    await tab.keyboard.press("Tab");
    const number = await tab.evaluate(() => [...document.querySelectorAll(".wide")].indexOf(document.activeElement));
    if (number >= 0) reached.add(number);
  }
  await tab.close();
  const violations = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ").slice(0, 300)}`);
  return { page: path.basename(file), width, scheme, violations, complaints, scrolled, reached: reached.size, ...measured };
}

(async () => {
  const [folder, ...files] = process.argv.slice(2);
  const browser = await puppeteer.launch({ executablePath: BROWSER, args: ["--no-sandbox", "--disable-gpu"] });
  const looks = [];
  for (const file of files) for (const each of LOOKS) looks.push(await look(browser, file, folder, each));
  await browser.close();
  console.log(JSON.stringify(looks));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
