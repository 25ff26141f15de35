// The four requests as they are usually written with Express, pg and BullMQ: a query per question, a job per deadline.
const { randomBytes } = require('node:crypto');
const express = require('express');
const jwt = require('jsonwebtoken');
const { Queue } = require('bullmq');
const IORedis = require('ioredis');
const { Pool } = require('pg');

const CHANNEL = 'after_hours:events';
const WARNING_MS = 120_000;
const MINUTE_MS = 60_000;
const path = new URL(process.env.REDIS_URL).pathname;
const redis = () => new IORedis({ path, maxRetriesPerRequest: null });
const pool = new Pool({ connectionString: process.env.DATABASE_URL });
const publisher = redis();
const queue = new Queue('sessions', { connection: redis() });
const ACTIVE = 'SELECT * FROM after_hours_sessions WHERE user_id = $1 AND ended_at IS NULL AND expires_at > now()';

const one = async (statement, ...values) => (await pool.query(statement, values)).rows[0];
const fail = (status, code) => Object.assign(new Error(code), { status, code });

function authenticate(req, _res, next) {
  try {
    req.member = jwt.verify(req.headers.authorization.slice('Bearer '.length), process.env.JWT_SECRET).userId;
  } catch {
    throw fail(401, 'TOKEN_INVALID');
  }
  next();
}

async function requirePremium(req, _res, next) {
  const found = await one(
    'SELECT 1 FROM user_subscriptions WHERE user_id = $1 AND is_active AND (expires_at IS NULL OR expires_at > now())',
    req.member,
  );
  if (!found) throw fail(403, 'PREMIUM_REQUIRED');
  next();
}

async function requireVerified(req, _res, next) {
  const user = await one('SELECT id_verified FROM users WHERE id = $1', req.member);
  if (!user?.id_verified) throw fail(403, 'VERIFICATION_REQUIRED');
  next();
}

async function requireConsent(req, _res, next) {
  const user = await one('SELECT after_hours_consent FROM users WHERE id = $1', req.member);
  if (!user?.after_hours_consent) throw fail(403, 'CONSENT_REQUIRED');
  next();
}

const shown = (session) => ({ id: session.id, startedAt: session.started_at, expiresAt: session.expires_at });
const publish = (kind, member, payload) =>
  publisher.publish(
    CHANNEL,
    JSON.stringify({ type: `after_hours:${kind}`, targetUserId: member, payload, timestamp: new Date().toISOString() }),
  );

async function arm({ id, user_id: member, expires_at: expiry }) {
  const left = expiry - Date.now();
  const options = { removeOnComplete: true, removeOnFail: true };
  await queue.add('end', { id, member }, { ...options, jobId: `end-${id}`, delay: left });
  await queue.add('warn', { id, member }, { ...options, jobId: `warn-${id}`, delay: Math.max(0, left - WARNING_MS) });
}

async function disarm({ id }) {
  await queue.remove(`end-${id}`);
  await queue.remove(`warn-${id}`);
}

const routes = express.Router();
routes.use(authenticate, requirePremium, requireVerified, requireConsent);

routes.get('/', async (req, res) => {
  const session = await one(ACTIVE, req.member);
  if (!session) return res.json({ success: true, active: false, session: null });
  const remainingSeconds = Math.floor((session.expires_at - Date.now()) / 1000);
  return res.json({ success: true, active: true, session: { ...shown(session), remainingSeconds } });
});

routes.post('/start', async (req, res) => {
  const { duration, latitude, longitude } = req.body;
  const valid = [15, 30, 60].includes(duration) && Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180;
  if (!valid) throw fail(400, 'VALIDATION_ERROR');
  if (!(await one('SELECT 1 FROM after_hours_profiles WHERE user_id = $1', req.member))) throw fail(400, 'PROFILE_REQUIRED');
  if (await one(ACTIVE, req.member)) throw fail(409, 'SESSION_ALREADY_ACTIVE');
  const noise = randomBytes(2);
  const session = await one(
    `INSERT INTO after_hours_sessions
       (user_id, started_at, expires_at, latitude, longitude, fuzzed_latitude, fuzzed_longitude)
     VALUES ($1, now(), $2, $3, $4, $5, $6) RETURNING *`,
    req.member, new Date(Date.now() + duration * MINUTE_MS), latitude, longitude,
    latitude + (noise[0] - 128) / 40_000, longitude + (noise[1] - 128) / 40_000,
  );
  await arm(session);
  await publish('session_started', req.member, shown(session));
  res.status(201).json({ success: true, session: { ...shown(session), durationMinutes: duration } });
});

routes.post('/extend', async (req, res) => {
  const { additionalMinutes } = req.body;
  if (![15, 30, 60].includes(additionalMinutes)) throw fail(400, 'VALIDATION_ERROR');
  const found = await one(ACTIVE, req.member);
  if (!found) throw fail(404, 'NO_ACTIVE_SESSION');
  const expiry = new Date(found.expires_at.getTime() + additionalMinutes * MINUTE_MS);
  const session = await one('UPDATE after_hours_sessions SET expires_at = $2 WHERE id = $1 RETURNING *', found.id, expiry);
  await disarm(session);
  await arm(session);
  await publish('session_extended', req.member, shown(session));
  res.json({ success: true, session: { ...shown(session), extendedByMinutes: additionalMinutes } });
});

routes.post('/end', async (req, res) => {
  const found = await one(ACTIVE, req.member);
  if (!found) throw fail(404, 'NO_ACTIVE_SESSION');
  const session = await one('UPDATE after_hours_sessions SET ended_at = now() WHERE id = $1 RETURNING *', found.id);
  await disarm(session);
  await publish('session_ended', req.member, shown(session));
  res.json({ success: true, session: { ...shown(session), endedAt: session.ended_at } });
});

const app = express();
app.use(express.json());
app.get('/readyz', (_req, res) => res.json({ status: 'ok' }));
app.use('/api/after-hours/session', routes);
app.use((error, _req, res, _next) => {
  res.status(error.status ?? 500).json({ success: false, code: error.code ?? 'INTERNAL_ERROR' });
});
app.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
