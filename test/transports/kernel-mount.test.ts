// A tree in memory behind a real mount, with other programs as judges.

import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs'
import t from 'tap'
import { lseek } from '../../lib/native/libc.js'
import { mountedDevice } from '../../lib/transports/mountinfo.js'
import { unmount } from '../../lib/transports/unmount.js'
import { mountMemory, start, until } from './fixtures/kernel-mount.js'
import { Control } from './fixtures/memory-tree.js'

const MiB = 1 << 20

t.test('stat, statfs, ls', async (t) => {
  const { raw, mountpoint, end } = await mountMemory(t)
  t.match(await start('stat', '-c', '%s %b %B %a %u %g %h %Y %F', raw), {
    out: '4194304 8 512 640 0 6 1 1000000001 regular file\n',
  })
  t.match(await start('stat', '-c', '%a %F %w', mountpoint), { out: '755 directory -\n' })
  t.match(await start('stat', '-f', '-c', '%s %b %f %a %c %l', mountpoint), { out: '4096 1000 400 300 2 255\n' })
  t.match(await start('ls', '-a', mountpoint), { out: '.\n..\ndisk.raw\n' })
  t.match(await start('cat', `${mountpoint}/other`), { code: 1, err: /No such file or directory/ })
  t.match(await start('touch', `${mountpoint}/other`), { code: 1, err: /Operation not permitted/ })
  t.match(await start('rm', '-f', raw), { code: 1, err: /Operation not permitted/ })
  t.match(await start('chmod', '600', raw), { code: 1, err: /Operation not permitted/ })
  t.match(await start('touch', raw), { code: 0 })
  t.match(readFileSync('/proc/self/mounts', 'utf8'), / fuse\.vdiskfs rw,nosuid,nodev,/)
  await end()
})

for (const options of [{}, { cachePolicy: 'direct' }, { writeback: true }] as const)
  t.test(`dd, cp, truncate: ${JSON.stringify(options)}`, async (t) => {
    const { raw, tree } = await mountMemory(t, options)
    const size = async () => Number((await start('stat', '-c', '%s', raw)).out)
    const source = `${t.testdir({ source: Buffer.alloc(MiB, 'vdiskfs!').toString() })}/source`
    tree.data.fill(0x55)
    // Whoever has the file open does not take part in an O_TRUNC of somebody else.
    const bystander = openSync(raw, 'r')
    t.teardown(async () => closeSync(bystander))
    t.match(await start('dd', `if=${source}`, `of=${raw}`, 'bs=64k'), { code: 0 })
    const last = Buffer.alloc(4)
    t.equal(readSync(bystander, last, 0, 4, 4 * MiB - 4), 4, 'the end is where it was')
    t.equal(last.toString(), 'UUUU')
    t.equal(await size(), 4 * MiB, 'after dd')
    t.match(await start('cmp', '-n', String(MiB), source, raw), { code: 0, out: '' })
    tree.data.fill(0x55, 0, MiB)
    t.match(await start('cp', source, raw), { code: 0 })
    t.equal(await size(), 4 * MiB, 'after cp')
    t.match(await start('sync', raw), { code: 0 })
    t.equal(tree.data.compare(readFileSync(source), 0, MiB, 0, MiB), 0, 'what cp wrote')
    t.ok(
      tree.data.subarray(MiB).every((byte) => byte === 0x55),
      'and nothing else',
    )
    t.match(await start('dd', `if=${raw}`, 'of=/dev/null', 'bs=1M', 'iflag=direct'), {
      code: 0,
      err: /^4\+0 records in/m,
    })
    t.match(await start('truncate', '-s', '12345', raw), { code: 1, err: /Invalid argument/ })
    t.match(await start('truncate', '-s', '0', raw), { code: 1, err: /Invalid argument/ })
    t.match(await start('truncate', '-s', '8M', raw), { code: 1, err: /Invalid argument/ })
    t.match(await start('truncate', '-s', '4M', raw), { code: 0 })
    const byName = 'truncate($ARGV[0], 0) or die $!'
    t.match(await start('perl', '-e', byName, raw), { code: 22, err: /Invalid argument/ }, 'truncate(2) by name')
    const byNameAfterWriting = `open F, "+<", $ARGV[0]; syswrite F, "U"; ${byName}`
    t.match(await start('perl', '-e', byNameAfterWriting, raw), { code: 22 }, 'by who has it open and wrote')
    const byNameLater = `open F, "+<", $ARGV[0]; select undef, undef, undef, 1.2; ${byName}`
    t.match(await start('perl', '-e', byNameLater, raw), { code: 22 }, 'by who has it open for a while')
    const again = `for (1..50) { open R, "<", $ARGV[0]; sysread R, $b, 512; open W, "+>", $ARGV[0] or die $!; syswrite W, "U" }`
    t.match(await start('perl', '-e', again, raw), { code: 0 }, 'O_TRUNC while the kernel reads ahead')
    const muchLater = `open R, "<", $ARGV[0]; select undef, undef, undef, 1.2; open W, ">", $ARGV[0] or die $!`
    t.match(await start('perl', '-e', muchLater, raw), { code: 0 }, 'O_TRUNC with attributes that are old')
    t.equal(await size(), 4 * MiB)
  })

t.test('writing over the end', async (t) => {
  const { raw, tree } = await mountMemory(t)
  for (const flag of ['nonblock', 'direct']) {
    const over = await start(
      'dd',
      'if=/dev/zero',
      `of=${raw}`,
      'bs=1M',
      'seek=3',
      'count=2',
      'conv=notrunc',
      `oflag=${flag}`,
    )
    t.match(over, { code: 1, err: /No space left on device[\s\S]*^1\+0 records out/m }, flag)
  }
  t.equal(tree.data.length, 4 * MiB)
  t.match(await start('stat', '-c', '%s', raw), { out: '4194304\n' })
})

t.test('fallocate, SEEK_DATA and SEEK_HOLE', async (t) => {
  const { raw, tree } = await mountMemory(t)
  tree.data.fill(1)
  t.match(await start('fallocate', '-p', '-o', '1M', '-l', '1M', raw), { code: 0, err: '' })
  t.same([tree.control[Control.UNMAPPED], tree.control[Control.ZEROED]], [1, 0], 'punched')
  t.match(await start('sync', raw), { code: 0 })
  t.match(await start('fallocate', '-z', '-o', '3M', '-l', '64K', raw), { code: 0, err: '' })
  t.same([tree.control[Control.UNMAPPED], tree.control[Control.ZEROED]], [1, 1], 'zeroed')
  t.match(await start('fallocate', '-l', '4M', raw), { code: 0, err: '' })
  t.match(await start('fallocate', '-l', '5M', raw), { code: 1, err: /No space left on device/ })
  t.match(await start('fallocate', '-c', '-o', '0', '-l', '4K', raw), { code: 1, err: /Operation not supported/ })
  const fd = openSync(raw, 'r')
  const [SEEK_DATA, SEEK_HOLE] = [3, 4]
  t.equal(lseek(fd, 0, SEEK_HOLE), MiB)
  t.equal(lseek(fd, MiB, SEEK_DATA), 2 * MiB)
  t.equal(lseek(fd, 2 * MiB, SEEK_HOLE), 3 * MiB)
  t.throws(() => lseek(fd, 4 * MiB, SEEK_DATA), { code: 'ENXIO' })
  closeSync(fd)
})

t.test('read-only', async (t) => {
  const { raw, tree } = await mountMemory(t, { readOnly: true })
  tree.data.fill(7)
  t.match(await start('dd', 'if=/dev/zero', `of=${raw}`, 'count=1'), { code: 1, err: /Read-only file system/ })
  t.match(await start('dd', 'if=/dev/zero', `of=${raw}`, 'count=1', 'conv=notrunc'), {
    code: 1,
    err: /Read-only file system/,
  })
  t.match(await start('cmp', '-n', '4096', raw, '/dev/zero'), { code: 1, out: /differ: (byte|char) 1,/ })
})

/** Opens disk.raw, changes a byte, and calls fsync or close, whose error it exits with. */
const writeAnd = (operation: 'sync' | 'close', raw: string) =>
  start(
    'perl',
    '-MIO::Handle',
    '-e',
    `open F, "+<", $ARGV[0]; F->autoflush; print F "x"; F->${operation} or die $!`,
    raw,
  )
const readDirect = (raw: string, skip = 0) =>
  start('dd', `if=${raw}`, 'of=/dev/null', 'bs=4k', 'count=1', `skip=${skip}`, 'iflag=direct')

const SYSTEM_CALLS: Record<string, { sync: string; close: string }> = {
  x64: { sync: '74', close: '3' },
  arm64: { sync: '82', close: '57' },
}
/** True while a process is in fsync(2) or close(2). */
const isIn = (call: 'sync' | 'close', { child }: { child: { pid?: number } }): boolean =>
  readFileSync(`/proc/${child.pid}/syscall`, 'utf8').startsWith(`${SYSTEM_CALLS[process.arch]![call]} `)

t.test('an fsync does not cost a worker', async (t) => {
  const { raw, tree, gate, pool } = await mountMemory(t, { initial: 2, max: 2 })
  gate(Control.FLUSH_GATE, true)
  // The kernel has one fsync under way for an inode at a time, but any number of FLUSHes, which are the same to us.
  const closes = Array.from({ length: 5 }, () => writeAnd('close', raw))
  await until(() => tree.control[Control.FLUSHES] === 1 && closes.every((close) => isIn('close', close)))
  t.match(await readDirect(raw), { code: 0 }, 'reading goes on')
  const killed = writeAnd('sync', raw)
  await until(() => isIn('sync', killed))
  t.match(await readDirect(raw), { code: 0 })
  killed.child.kill('SIGKILL')
  t.match(await killed, { code: 'SIGKILL' }, 'a parked fsync is interrupted')
  t.equal(tree.control[Control.FLUSHES], 1, 'all that while the first commit runs')
  t.equal(pool.size, 2)
  gate(Control.FLUSH_GATE, false)
  for (const close of closes) t.match(await close, { code: 0, err: '' })
  t.match(await writeAnd('sync', raw), { code: 0, err: '' })
})

t.test('a worker that dies: its request fails, others go on, it is replaced', async (t) => {
  const { raw, tree, deaths, pool } = await mountMemory(t, { initial: 2, max: 2 })
  for (let round = 1; round <= 3; round++) {
    tree.control[Control.DEADLY_READS] = 1
    t.match(await readDirect(raw), { code: 1, err: /Input\/output error/ })
    t.match(await readDirect(raw), { code: 0 })
    await until(() => deaths.length === round)
  }
  t.equal(pool.size, 2)
})

t.test('a worker that dies while it commits: all who wait for it hear of it', async (t) => {
  const { raw, tree, gate, deaths } = await mountMemory(t, { initial: 2, max: 2 })
  gate(Control.FLUSH_GATE, true)
  tree.control[Control.DEADLY_FLUSHES] = 1
  const closes = Array.from({ length: 3 }, () => writeAnd('close', raw))
  await until(() => tree.control[Control.FLUSHES] === 1 && closes.every((close) => isIn('close', close)))
  t.match(await readDirect(raw), { code: 0 }, 'they are parked: a request behind theirs was served')
  gate(Control.FLUSH_GATE, false)
  for (const close of closes) t.match(await close, { code: 5, err: /Input\/output error/ })
  t.equal(deaths.length, 1)
  t.match(await writeAnd('sync', raw), { code: 0 }, 'and the next one commits')
})

t.test('more workers where all of them wait', async (t) => {
  const { raw, gate, pool, tree } = await mountMemory(t, { initial: 1, max: 4 })
  gate(Control.READ_GATE, true)
  const reads = Array.from({ length: 6 }, (_, skip) => readDirect(raw, skip))
  await until(() => tree.control[Control.READS] === 4)
  t.equal(pool.size, 4)
  gate(Control.READ_GATE, false)
  for (const read of reads) t.match(await read, { code: 0 })
})

t.test('a reader that is killed', async (t) => {
  const { raw, gate, tree } = await mountMemory(t, { initial: 2, max: 2 })
  gate(Control.READ_GATE, true)
  const read = readDirect(raw)
  await until(() => tree.control[Control.READS] === 1)
  read.child.kill('SIGKILL')
  gate(Control.READ_GATE, false)
  t.match(await read, { code: 'SIGKILL' })
  t.match(await readDirect(raw), { code: 0 })
})

t.test('unmounting', async (t) => {
  const { raw, mountpoint, end } = await mountMemory(t)
  const fd = openSync(raw, 'r')
  await t.rejects(unmount(mountpoint), { code: 'IN_USE', path: mountpoint }, 'busy')
  closeSync(fd)
  await end()
  t.equal(mountedDevice(mountpoint), undefined)
  await t.rejects(unmount(mountpoint), { code: 'NOT_FOUND' })
})

t.test('by umount(8)', async (t) => {
  const { mountpoint, pool } = await mountMemory(t)
  t.match(await start('umount', mountpoint), { code: 0 })
  await pool.ended
})

t.test('by force, under load and with requests that hang', async (t) => {
  const { raw, mountpoint, gate, tree, end } = await mountMemory(t, { initial: 2, max: 2 })
  const load = start('sh', '-c', 'while dd if="$0" of=/dev/null bs=1M iflag=direct 2>/dev/null; do :; done', raw)
  await until(() => tree.control[Control.READS]! > 100)
  gate(Control.READ_GATE, true)
  const stuck = [readDirect(raw), readDirect(raw)]
  await until(() => tree.control[Control.READS]! > 100)
  const ended = end(true)
  for (const read of stuck) t.match(await read, { code: 1 })
  t.match(await load, { code: 0 })
  gate(Control.READ_GATE, false)
  await ended
  t.notOk(existsSync(mountpoint))
})
