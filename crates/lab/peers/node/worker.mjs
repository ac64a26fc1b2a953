// The worker's job as one would write it in Node.js, to compare with: consume, validate, sign,
// write down the intent (a commit), PATCH, write down the outcome (a commit), ack. Keep-alive
// connections, prepared statements, as many jobs at once as the worker has. It reads nothing
// back, retries nothing and knows of no other job of a customer. Stops at SIGTERM.
import { createHmac } from "node:crypto";
import amqp from "amqplib";
import pg from "pg";
import { Pool } from "undici";

const { AMQP_URL, DATABASE_URL, QUEUE, DOLLARPE_BASE_URL, DOLLARPE_API_KEY, DOLLARPE_API_SECRET } = process.env;
const CONCURRENCY = Number(process.env.CONCURRENCY);
const PREFETCH = Number(process.env.PREFETCH);
const DATABASE_CONNECTIONS = 20;
const REQUEST_TIMEOUT_MS = 15_000;

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const DOCUMENT_TYPES = new Set(["AADHAAR", "PASSPORT", "VOTER_ID", "DRIVING_LICENSE"]);

const endpoint = new URL(`${DOLLARPE_BASE_URL}/kyc/update-document-info`);
const http = new Pool(endpoint.origin, {
  connections: CONCURRENCY,
  headersTimeout: REQUEST_TIMEOUT_MS,
  bodyTimeout: REQUEST_TIMEOUT_MS,
});
const database = new pg.Pool({ connectionString: DATABASE_URL, max: DATABASE_CONNECTIONS });

const INTENT = {
  name: "intent",
  text: "insert into peer.intent (job_id, customer_id, signed_at) values ($1, $2, to_timestamp($3))",
};
const OUTCOME = {
  name: "outcome",
  text: "insert into peer.outcome (job_id, state, http_status, message) values ($1, $2, $3, $4)",
};

/** The job in a message; throws what is wrong with it. */
function parse(message) {
  const jobId = message.properties.messageId;
  const body = JSON.parse(message.content.toString());
  if (!UUID.test(jobId ?? "")) throw new Error("message_id: must be a UUID");
  if (!UUID.test(body.customer_id ?? "")) throw new Error("/customer_id: must be a UUID");
  if (!DOCUMENT_TYPES.has(body.document_type)) throw new Error("/document_type: is not known");
  for (const field of ["full_address", "document_front_image_url"]) {
    if (typeof body[field] !== "string" || body[field] === "") throw new Error(`/${field}: must be a text`);
  }
  for (const field of ["document_front_image_url", "document_back_image_url"]) {
    if (body[field] !== undefined && new URL(body[field]).protocol !== "https:") {
      throw new Error(`/${field}: must be https`);
    }
  }
  if (typeof body.document_details?.document_number !== "string") {
    throw new Error("/document_details/document_number: must be a text");
  }
  return { jobId, body };
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

/** The text that is signed and sent: sorted, compact, ASCII. */
function canonical(body) {
  return JSON.stringify(sorted(body)).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

async function send(text, timestamp) {
  const signature = createHmac("sha256", DOLLARPE_API_SECRET)
    .update(`${DOLLARPE_API_KEY}|${timestamp}|${text}`)
    .digest("base64");
  const { statusCode, body } = await http.request({
    method: "PATCH",
    path: endpoint.pathname,
    headers: {
      "content-type": "application/json",
      "x-api-key": DOLLARPE_API_KEY,
      "x-timestamp": String(timestamp),
      "x-signature": signature,
    },
    body: text,
  });
  return { status: statusCode, answer: await body.json() };
}

async function submit(channel, message) {
  let job;
  try {
    job = parse(message);
  } catch (error) {
    console.error(`invalid: ${error.message}`);
    channel.nack(message, false, false);
    return;
  }
  const timestamp = Math.floor(Date.now() / 1000);
  await database.query({ ...INTENT, values: [job.jobId, job.body.customer_id, timestamp] });
  const { status, answer } = await send(canonical(job.body), timestamp);
  const isAccepted = status >= 200 && status < 300 && answer.status === true;
  const values = [job.jobId, isAccepted ? "accepted" : "rejected", status, isAccepted ? null : answer.message];
  await database.query({ ...OUTCOME, values });
  channel.ack(message);
}

const connection = await amqp.connect(AMQP_URL);
const channel = await connection.createChannel();
await channel.prefetch(PREFETCH);

// Deliveries beyond CONCURRENCY wait their turn here.
const waiting = [];
let inFlight = 0;
function next() {
  while (inFlight < CONCURRENCY && waiting.length > 0) {
    inFlight += 1;
    submit(channel, waiting.shift())
      // A failed benchmark: nothing is retried.
      .catch((error) => {
        console.error(error);
        process.exit(1);
      })
      .finally(() => {
        inFlight -= 1;
        next();
      });
  }
}

process.once("SIGTERM", () => process.exit(0));
await channel.consume(QUEUE, (message) => {
  if (message === null) {
    console.error("the broker cancelled the consumer");
    process.exit(1);
  }
  waiting.push(message);
  next();
});
