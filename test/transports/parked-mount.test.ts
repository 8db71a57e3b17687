// Workers that one syncing client had parked, and a second client, at a real mount.

import { execFileSync } from 'node:child_process'
import t from 'tap'
import { mountMemory, start, until } from './fixtures/kernel-mount.js'
import { Control, type MemoryTree } from './fixtures/memory-tree.js'

const SYNC_LOOP = 'open F, "+<", $ARGV[0]; while (1) { sysseek F, 0, 0; syswrite F, "x"; F->sync or exit }'
const PATIENCE = 30_000

const readDirect = (raw: string, count: number) => [
  `if=${raw}`,
  'of=/dev/null',
  'bs=4k',
  `count=${count}`,
  'iflag=direct',
]

/** A client that writes and syncs in turn, for so long that one worker is enough. @returns what ends it */
async function startSyncing(raw: string, { control }: MemoryTree) {
  const client = start('perl', '-MIO::Handle', '-e', SYNC_LOOP, raw)
  const before = control[Control.FLUSHES]!
  await until(() => control[Control.FLUSHES]! - before > 500)
  return async () => {
    client.child.kill()
    await client
  }
}

t.test('it is served while a commit takes for ever', async (t) => {
  const { raw, tree, gate } = await mountMemory(t)
  for (const round of [1, 2]) {
    const stop = await startSyncing(raw, tree)
    gate(Control.FLUSH_GATE, true)
    t.match(await start('timeout', '-s', 'KILL', '20', 'dd', ...readDirect(raw, 500)), { code: 0 }, `round ${round}`)
    gate(Control.FLUSH_GATE, false)
    await stop()
  }
})

t.test('and while the main thread waits too', async (t) => {
  const { raw, tree, gate } = await mountMemory(t)
  const stop = await startSyncing(raw, tree)
  gate(Control.FLUSH_GATE, true)
  // As in a commit of its own: nothing of its event loop runs.
  t.doesNotThrow(() =>
    execFileSync('dd', readDirect(raw, 500), { stdio: 'ignore', timeout: PATIENCE, killSignal: 'SIGKILL' }),
  )
  gate(Control.FLUSH_GATE, false)
  await stop()
})

t.test('its reads do not wait for a commit each', async (t) => {
  const { raw, tree } = await mountMemory(t)
  const stop = await startSyncing(raw, tree)
  tree.control[Control.FLUSH_MS] = 20
  const before = tree.control[Control.FLUSHES]!
  t.match(await start('dd', ...readDirect(raw, 500)), { code: 0 })
  const during = tree.control[Control.FLUSHES]! - before
  t.ok(during < 250, `${during} commits during 500 reads`)
  await stop()
})
