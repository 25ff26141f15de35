// One delayed job per session. Reads the live sessions, arms them all, says so, and ends each when its job comes.
const { Queue, Worker } = require('bullmq');
const IORedis = require('ioredis');
const { Pool } = require('pg');

const CHANNEL = 'after_hours:events';
const path = new URL(process.env.REDIS_URL).pathname;
const redis = () => new IORedis({ path, maxRetriesPerRequest: null });
const pool = new Pool({ connectionString: process.env.DATABASE_URL });
const publisher = redis();

async function end({ data: { id, member } }) {
  const ended = await pool.query(
    'UPDATE after_hours_sessions SET ended_at = expires_at WHERE id = $1 AND ended_at IS NULL AND expires_at <= clock_timestamp()',
    [id],
  );
  if (ended.rowCount) {
    const payload = { sessionId: id, reason: 'timeout' };
    const event = { type: 'after_hours:session_expired', targetUserId: member, payload, timestamp: new Date().toISOString() };
    await publisher.publish(CHANNEL, JSON.stringify(event));
  }
}

async function main() {
  const queue = new Queue('sessions', { connection: redis() });
  const { rows } = await pool.query('SELECT id, user_id, expires_at FROM after_hours_sessions WHERE ended_at IS NULL');
  const jobs = rows.map((row) => ({
    name: 'end',
    data: { id: row.id, member: row.user_id },
    opts: { jobId: `end-${row.id}`, delay: row.expires_at - Date.now(), removeOnComplete: true, removeOnFail: true },
  }));
  for (let i = 0; i < jobs.length; i += 1000) await queue.addBulk(jobs.slice(i, i + 1000));
  new Worker('sessions', end, { connection: redis(), concurrency: 10 });
  console.log('armed');
}

process.on('SIGTERM', () => process.exit(0));
main();
