// Uses the console as people do: in a real browser, by clicking, without a mouse, and without scripts. Told
// what to do by the test in tests/it/console_browser.rs, in the variable TASK; ends with 1 at the first fault.
import { readFileSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { strict as assert } from "node:assert";

const task = JSON.parse(process.env.TASK);
const require = createRequire(`${task.libraries}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(task.screens, { recursive: true });

const browser = await chromium.launch({
  executablePath: task.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

// Faults of any page that was open: what it logged, what its policy refused, what it threw.
const faults = [];
let screens = 0;

async function as(person, options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1200, height: 900 },
    extraHTTPHeaders: {
      "x-console-secret": task.secret, "x-forwarded-email": person.name, "x-forwarded-groups": person.groups,
    },
    ...options,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  page.on("console", (message) => {
    // A page that says no is no fault of the page's.
    const isRefusal = message.text().startsWith("Failed to load resource") && /status of 4\d\d/.test(message.text());
    if (["error", "warning"].includes(message.type()) && !isRefusal) faults.push(`${page.url()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`${page.url()}: ${error}`));
  page.on("requestfailed", (request) => {
    if (!request.failure().errorText.includes("ABORTED")) faults.push(`${request.url()}: ${request.failure().errorText}`);
  });
  return page;
}

const go = (page, path) => page.goto(task.base + path);
const text = (page) => page.locator("main").innerText();

async function screen(page, name) {
  screens += 1;
  await page.screenshot({ path: `${task.screens}/${name}.png`, fullPage: true });
}

async function has(page, part) {
  const said = await text(page);
  assert.ok(said.includes(part), `${page.url()} does not say "${part}":\n${said}`);
}

async function fill(page, note, button) {
  await page.getByLabel(/Why/).first().fill(note);
  await page.getByRole("button", { name: button }).click();
}

// The runbook's section on jobs that need review: from the first page to the decision.
async function review(person, job, finding, options) {
  const page = await as(person, options);
  await go(page, "/");
  await page.getByRole("link", { name: "wait for a reviewer" }).click();
  await has(page, "Jobs that wait for a person");
  await page.getByRole("link", { name: job }).click();
  await has(page, "What to compare at the provider");
  await has(page, "What each decision would do");
  await screen(page, `review${options?.javaScriptEnabled === false ? "-without-scripts" : ""}`);
  await page.getByRole("link", { name: `${finding}…` }).click();
  await has(page, "What would come of it");
  await screen(page, "ask");
  await fill(page, "the dashboard shows the old document", "Do it");
  assert.equal(page.url(), `${task.base}/jobs/${job}`);
  await has(page, `resolve by ${person.name}`);
  await page.context().close();
}

// The section on sending again after a fix.
async function replay(person, count, options) {
  const page = await as(person, options);
  await go(page, "/");
  await page.getByRole("link", { name: "Send again" }).click();
  await page.getByLabel("That ended as").selectOption("exhausted");
  await page.getByRole("button", { name: "Show what would happen" }).click();
  await has(page, "it is sent again, and may spend 1 update");
  await screen(page, "replay");
  await fill(page, "the provider is mended", `Send ${count} again`);
  await has(page, `Sent again: ${count}; refused: 0`);
  await page.context().close();
}

// The section on something poisonous: stop everything, see that it stands, go on.
async function pauseAndResume(person, options) {
  const page = await as(person, options);
  await go(page, "/");
  await page.getByRole("link", { name: "Pause all the work…" }).click();
  await fill(page, "upstream 7.2 publishes broken jobs", "Do it");
  await has(page, "All work is paused");
  await has(page, person.name);
  await screen(page, "paused");
  await page.getByRole("link", { name: "Resume the work…" }).click();
  await fill(page, "upstream rolled back", "Do it");
  assert.ok(!(await text(page)).includes("All work is paused"));
  await page.context().close();
}

// The section on dead letters: what is wrong, where, how often, and the command. Never a body.
async function deadLetters(person, options) {
  const page = await as(person, options);
  await go(page, "/");
  await page.getByRole("link", { name: /dead letters of the last day, invalid/ }).click();
  await has(page, "/document_type");
  await has(page, "kyc-worker dead-letters show");
  await has(page, "kyc-worker dead-letters requeue");
  await screen(page, "dead-letters");
  await page.context().close();
}

// One box for all that support has in hand.
async function find(person, options) {
  const page = await as(person, options);
  for (const [q, path] of task.find) {
    await go(page, "/");
    await page.getByRole("searchbox").fill(q);
    await page.getByRole("button", { name: "Find" }).click();
    assert.equal(page.url(), task.base + path, q);
  }
  await page.getByRole("searchbox").fill("nobody's");
  await page.getByRole("button", { name: "Find" }).click();
  await has(page, "Nothing is known by this name");
  await page.context().close();
}

// By keyboard alone: the focus is moved by Tab, and seen.
async function tabTo(page, name) {
  for (let presses = 0; presses < 200; presses += 1) {
    await page.keyboard.press("Tab");
    const focus = await page.evaluate(() => {
      const element = document.activeElement;
      const style = getComputedStyle(element);
      const label = element.labels?.[0]?.innerText ?? "";
      return { name: element.innerText || label, seen: style.outlineStyle !== "none" };
    });
    if (focus.name.trim().startsWith(name)) {
      assert.ok(focus.seen, `the focus on "${name}" is not to be seen`);
      return;
    }
  }
  assert.fail(`Tab does not come to "${name}" on ${page.url()}`);
}

async function press(page, name) {
  await tabTo(page, name);
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
}

async function byKeyboard(person, job) {
  const page = await as(person);
  await go(page, "/");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.innerText), "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await press(page, "wait for a reviewer");
  await press(page, job);
  await press(page, "rejected…");
  await tabTo(page, "Why");
  await page.keyboard.type("it is not wanted any more");
  await press(page, "Do it");
  await has(page, `resolve by ${person.name}`);
  await page.context().close();
}

// Two people at two browsers: what one proposes, another approves.
async function twoPeople() {
  const [first, second] = [await as(task.people.reviewer), await as(task.people.second)];
  await go(first, `/review/${task.proposed}`);
  await first.getByRole("link", { name: "accepted…" }).click();
  await has(first, "A second person must approve this");
  await fill(first, "seen in the dashboard", "Propose it");
  const proposal = first.url();
  await has(first, "You proposed it: somebody else must approve it");
  assert.equal(await first.getByRole("button", { name: "Approve it" }).count(), 0);
  await go(second, "/");
  await second.getByRole("link", { name: "Proposals", exact: true }).click();
  await screen(second, "proposals");
  await second.getByRole("link", { name: proposal.split("/").pop(), exact: true }).click();
  await screen(second, "proposal");
  await fill(second, "I see the same", "Approve it");
  await has(second, task.people.reviewer.name);
  await has(second, task.people.second.name);
  const auditor = await as(task.people.auditor);
  await go(auditor, "/interventions");
  await has(auditor, task.people.reviewer.name);
  await has(auditor, task.people.second.name);
  await screen(auditor, "interventions");
  for (const page of [first, second, auditor]) await page.context().close();
}

// A page keeps itself up to date, but not under somebody's hands.
async function live(person) {
  const page = await as(person);
  await page.clock.install();
  let asked = 0;
  page.on("request", (request) => { if (request.resourceType() === "fetch") asked += 1; });
  const other = await as(task.people.operator);
  const pause = async (path) => {
    await go(other, path);
    await fill(other, "a drill", "Do it");
  };
  await go(page, "/");
  await pause("/pause");
  await page.clock.runFor(5000);
  await page.getByText("All work is paused").waitFor();
  await page.getByLabel("keep this page up to date").uncheck();
  await pause("/resume");
  asked = 0;
  await page.clock.runFor(60000);
  assert.equal(asked, 0, "a page that is to stay as it is asks for itself");
  await has(page, "All work is paused");
  await page.getByLabel("keep this page up to date").check();
  await page.clock.runFor(5000);
  await page.getByText("All work is paused").waitFor({ state: "detached" });
  for (const each of [page, other]) await each.context().close();
}

// Every page by the rules of accessible pages, light and dark, wide and as narrow as a telephone.
async function judge() {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1200, 320]) {
      const page = await as(task.people.all, { colorScheme, viewport: { width, height: 800 } });
      for (const path of task.pages) {
        await go(page, path);
        await page.evaluate(axe);
        const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
        const violations = found.violations.map((each) => `${each.id}: ${each.help}: ${each.nodes.map((node) => node.html).join(" ").slice(0, 400)}`);
        assert.deepEqual(violations, [], `${path}, ${colorScheme}, ${width} px`);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${path} is ${overflow} px wider than ${width} px`);
      }
      if (width === 1200) {
        await go(page, "/");
        await screen(page, `now-${colorScheme}`);
        await go(page, `/jobs/${task.shown}`);
        await screen(page, `job-${colorScheme}`);
        await go(page, `/customers/${task.shownCustomer}`);
        await screen(page, `customer-${colorScheme}`);
      }
      await page.context().close();
    }
  }
  const page = await as(task.people.all);
  await go(page, `/jobs/${task.shown}`);
  await page.emulateMedia({ media: "print" });
  assert.ok(!(await page.getByRole("navigation").isVisible()), "a printed page has no menu");
  await screen(page, "job-printed");
  await page.context().close();
}

const scriptless = { javaScriptEnabled: false };
const steps = {
  judge: () => judge(),
  find: () => find(task.people.viewer),
  "find without scripts": () => find(task.people.viewer, scriptless),
  review: () => review(task.people.reviewer, task.review[0], "not-applied"),
  "review without scripts": () => review(task.people.reviewer, task.review[1], "not-applied", scriptless),
  "by keyboard": () => byKeyboard(task.people.reviewer, task.review[2]),
  "dead letters": () => deadLetters(task.people.viewer),
  "dead letters without scripts": () => deadLetters(task.people.viewer, scriptless),
  pause: () => pauseAndResume(task.people.operator),
  "pause without scripts": () => pauseAndResume(task.people.operator, scriptless),
  live: () => live(task.people.viewer),
  replay: () => replay(task.people.operator, 2),
  "two people": () => twoPeople(),
};
for (const name of task.steps) {
  const begun = Date.now();
  await steps[name]();
  console.log(`${name}: ${Date.now() - begun} ms`);
}
await browser.close();
assert.deepEqual(faults, [], "a page had faults");
console.log(`${screens} screens`);
