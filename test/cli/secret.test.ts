/** Passphrases on the command line: from a file, from the terminal, and nowhere to be seen afterwards. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { main } from '../../lib/cli/main.js'
import { readSecret } from '../../lib/cli/secret.js'
import { registryFolder } from '../../lib/mount/registry.js'
import { create, MiB, PASSPHRASE, qemuIo } from '../formats/qcow2/luks-images.js'
import { listed, mountImage, needsMounts, tryMount } from '../support/mounts.js'
import { CLI, must, run } from '../support/run.js'
import { temporaryFolder } from '../support/temp.js'

/** Runs a command line; `typed` is what the user types where he is asked. */
async function call(argv: readonly string[], typed?: readonly string[]) {
  let out = ''
  let err = ''
  const prompts: string[] = []
  const answers = [...(typed ?? [])]
  const askSecret = (prompt: string) => {
    prompts.push(prompt)
    const answer = answers.shift()
    return answer === undefined ? undefined : Buffer.from(answer)
  }
  const io = {
    out: (text: string) => {
      out += text
    },
    err: (text: string) => {
      err += text
    },
    columns: undefined,
    ...(typed && { askSecret }),
  }
  return { code: await main(argv, io), out, err, prompts }
}

t.test('the file: all of it but one newline', async (t) => {
  const path = join(temporaryFolder(t), 'secret')
  for (const [content, expected] of [
    ['geheim', 'geheim'],
    ['geheim\n', 'geheim'],
    ['geheim\r\n', 'geheim'],
    ['geheim\n\n', 'geheim\n'],
    [' a b\t', ' a b\t'],
    ['\n\r', '\n\r'],
  ] as const) {
    writeFileSync(path, content)
    t.equal(Buffer.from(readSecret(path)).toString(), expected)
  }
  writeFileSync(path, '\n')
  t.throws(() => readSecret(path), { code: 'USAGE', message: `${path}: there is no passphrase in it` })
  t.throws(() => readSecret(`${path}x`), { code: 'NOT_FOUND', message: /^cannot read the secret in .*x: no such file/ })
})

t.test('create, map, convert, compare', async (t) => {
  const folder = temporaryFolder(t)
  const file = (name: string, content?: string) => {
    const path = join(folder, name)
    if (content !== undefined) writeFileSync(path, content)
    return path
  }
  const [key, other, wrong] = [file('key', `${PASSPHRASE}\n`), file('other', 'another'), file('wrong', 'falsch')]
  const [image, copy, raw] = [file('a.qcow2'), file('b.qcow2'), file('c.raw')]
  const luks = ['-o', 'encrypt.format=luks,encrypt.iter-time=1']
  const none = await call(['create', '-f', 'qcow2', ...luks, image, '1M'])
  t.same(none.code, 2)
  t.equal(none.err, `vdiskfs: ${image}: encrypt.format=luks needs --secret FILE, with a passphrase\n`)
  t.equal((await call(['create', '-f', 'qcow2', ...luks, '--secret', key, image, '1M'])).code, 0)
  qemuIo(image, 'write -P 0x5a 64k 64k')

  const missing = await call(['map', image])
  t.same(
    [missing.code, missing.err],
    [1, `vdiskfs: ${image}: it is encrypted (luks): say --secret FILE, with its passphrase\n`],
  )
  const refused = await call(['map', '--secret', wrong, image])
  t.same([refused.code, refused.err], [1, `vdiskfs: ${image}: the passphrase opens none of its key slots\n`])
  const map = await call(['map', '--secret', key, image])
  t.match(map.out, /^0x10000 +0x10000 +encrypted/m)
  const info = await call(['info', '--json', image])
  const facts = JSON.parse(info.out) as { encrypted: boolean; 'format-specific': { data: { encrypt: object } } }
  t.equal(facts.encrypted, true)
  const theirs = JSON.parse(must('qemu-img', ['info', '--output=json', image])) as typeof facts
  t.equal(theirs.encrypted, true)
  const { encrypt } = theirs['format-specific'].data
  t.match(facts['format-specific'].data.encrypt, encrypt, "info says what qemu-img's does")

  t.equal((await call(['convert', '-q', '--secret', key, image, raw])).code, 0)
  t.ok(
    readFileSync(raw)
      .subarray(65_536, 131_072)
      .every((byte) => byte === 0x5a),
  )
  const again = ['convert', '-q', '-O', 'qcow2', ...luks, '--secret', key, '--target-secret', other, image, copy]
  t.equal((await call(again)).code, 0)
  t.equal((await call(['convert', '-q', '--secret', other, copy, file('d.raw')])).code, 0)
  t.ok(readFileSync(raw).equals(readFileSync(file('d.raw'))))
  t.equal((await call(['compare', '-q', '--secret', key, image, raw])).code, 0)
  t.equal((await call(['compare', '-q', '--secret', other, copy, image])).code, 2)
  const two = ['compare', '--secret', other, '--second-secret', key]
  t.same((await call([...two, copy, image])).out, 'Images are identical.\n')
  t.match(await call([...two, image, copy]), { code: 2, err: `${image}: the passphrase opens none` })
  t.equal((await call(['compare', '-q', '--second-secret', other, raw, copy])).code, 0)
  t.match(await call([...two.slice(0, 4), join(folder, 'none'), copy, image]), { code: 2, err: /none: no such file/ })
})

t.test('asking for it', async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, 'image.qcow2')
  const luks = ['-o', 'encrypt.format=luks,encrypt.iter-time=1']
  const different = await call(['create', '-f', 'qcow2', ...luks, image, '1M'], [PASSPHRASE, 'geheum'])
  t.same([different.code, different.err], [2, `vdiskfs: ${image}: the two passphrases are not the same\n`])
  const created = await call(['create', '-f', 'qcow2', ...luks, image, '1M'], [PASSPHRASE, PASSPHRASE])
  t.equal(created.code, 0)
  t.same(created.prompts, [`Passphrase of ${image}: `, 'Once more: '])
  const map = await call(['map', image], [PASSPHRASE])
  t.same([map.code, map.prompts.length], [0, 1])
  t.equal((await call(['map', image], [])).code, 1)
  t.notMatch(created.out + map.out + map.err, PASSPHRASE)
  const plain = join(folder, 'plain.qcow2')
  must('qemu-img', ['create', '-q', '-f', 'qcow2', plain, '1M'])
  t.same((await call(['map', plain], [PASSPHRASE])).prompts, [], 'not where nothing is encrypted')
  t.same((await call(['info', image], [PASSPHRASE])).prompts, [], 'not for what is in the clear')
})

t.test('on a terminal, what is typed is not shown', async (t) => {
  const image = join(temporaryFolder(t), 'image.qcow2')
  create(image, MiB, ['encrypt.format=luks'])
  const command = `${process.execPath} ${CLI} map ${image}`
  /** Types when it is asked to. */
  const typing = (keys: string) => {
    const child = spawn('script', ['-qec', command, '/dev/null'], { timeout: 20_000 })
    let out = ''
    child.stdout.on('data', (data: Buffer) => {
      if (!out.includes('Passphrase') && data.includes('Passphrase')) child.stdin.write(keys)
      out += data
    })
    return new Promise<{ code: number | null; out: string }>((resolve) => {
      child.on('close', (code) => resolve({ code, out }))
    })
  }
  const good = await typing(`gehx\x7feimm\x08\r`)
  t.equal(good.code, 0)
  t.match(good.out, `Passphrase of ${image}: \r\n`)
  t.notMatch(good.out, /eim/)
  t.match((await typing('wrong\r')).out, 'the passphrase opens none of its key slots')
  t.not((await typing('\x03')).code, 0)
})

t.test('a mount: its server is told on its standard input only', needsMounts, async (t) => {
  const folder = temporaryFolder(t)
  const image = join(folder, 'image.qcow2')
  const key = join(folder, 'key')
  writeFileSync(key, PASSPHRASE)
  create(image, MiB, ['encrypt.format=luks'])
  qemuIo(image, 'write -P 0x5a 64k 64k')
  const none = tryMount(t, image)
  t.same(
    [none.code, none.err],
    [1, `vdiskfs: ${image}: it is encrypted (luks): say --secret FILE, with its passphrase\n`],
  )
  for (const options of [
    ['--secret', key],
    ['-o', `secret=${key}`],
  ]) {
    const mount = mountImage(t, image, options)
    t.ok(
      readFileSync(mount.raw)
        .subarray(65_536, 131_072)
        .every((byte) => byte === 0x5a),
    )
    const seen = [
      readFileSync(`/proc/${mount.pid}/cmdline`),
      readFileSync(`/proc/${mount.pid}/environ`),
      JSON.stringify(listed()),
      must('grep', ['-rh', '', registryFolder()]),
    ].join('\n')
    for (const form of [PASSPHRASE, Buffer.from(PASSPHRASE).toString('base64')]) t.notMatch(seen, form)
    mount.umount()
  }
})

/** Of the header: iterations of the first key slot. */
const SLOT_ITERATIONS = 208 + 4

/** An image whose passphrase takes minutes to try: its server says so at once, and ends when it is told to. */
function slowImage(folder: string, iterations: number): string {
  const image = join(folder, 'slow.qcow2')
  create(image, MiB, ['encrypt.format=luks'])
  const bytes = readFileSync(image)
  const header = bytes.indexOf('LUKS\xba\xbe', 0, 'latin1')
  bytes.writeUInt32BE(iterations, header + SLOT_ITERATIONS)
  writeFileSync(image, bytes)
  return image
}

t.test('a header that wants a passphrase to take minutes', async (t) => {
  const folder = temporaryFolder(t)
  const key = join(folder, 'key')
  writeFileSync(key, PASSPHRASE)
  const image = slowImage(folder, 2 ** 27)
  const { code, err } = await call(['map', '--secret', key, image])
  t.equal(code, 1)
  t.match(err, /its key slots want \d+ iterations of PBKDF2: expected 134217728 at most/)
})

for (const command of ['mount', 'mount -f', 'map', 'convert'])
  t.test(`${command}: it says that trying a passphrase takes long, and a signal ends that`, async (t) => {
    const folder = temporaryFolder(t)
    const key = join(folder, 'key')
    const point = join(folder, 'point')
    mkdirSync(point)
    writeFileSync(key, PASSPHRASE)
    const image = slowImage(folder, 2 ** 26)
    const target = join(folder, 'target')
    const paths = { map: [image], convert: [image, target] }[command] ?? [image, point]
    const child = spawn(process.execPath, [CLI, ...command.split(' '), '--secret', key, ...paths])
    const servers = () => run('pgrep', ['-f', `^vdiskfs .*${image}`]).out
    t.teardown(() => {
      child.kill('SIGKILL')
      for (const pid of servers().split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL')
    })
    const ended = once(child, 'exit')
    for await (const text of child.stderr) if (/with up to \d+ iterations/.test(String(text))) break
    if (command === 'mount') t.not(servers(), '')
    child.kill('SIGTERM')
    t.same(await ended, [null, 'SIGTERM'])
    for (let i = 0; i < 100 && servers() !== ''; i++) await sleep(50)
    t.equal(servers(), '', 'nor does its server go on')
    t.notOk(existsSync(target))
  })

for (const command of ['create -f qcow2', 'convert -O qcow2'])
  t.test(`${command}: a signal ends the making of a key, and no file is left`, async (t) => {
    const folder = temporaryFolder(t)
    const key = join(folder, 'key')
    writeFileSync(key, PASSPHRASE)
    const source = join(folder, 'source')
    writeFileSync(source, Buffer.alloc(MiB, 1))
    const target = join(folder, 'target')
    const luks = ['-o', 'encrypt.format=luks,encrypt.iter-time=60000', '--secret', key]
    const names = command.startsWith('convert') ? [source, target] : [target, '1M']
    const child = spawn(process.execPath, [CLI, ...command.split(' '), ...luks, ...names])
    t.teardown(() => child.kill('SIGKILL'))
    const ended = once(child, 'exit')
    await sleep(2000)
    t.same(readdirSync(folder).sort(), ['key', 'source'], 'the key is made before the file')
    child.kill('SIGTERM')
    t.same(await ended, [null, 'SIGTERM'])
    t.same(readdirSync(folder).sort(), ['key', 'source'])
  })

t.test('a key that was made or found is not derived again, whatever else is', async (t) => {
  const folder = temporaryFolder(t)
  const [key, wrong, image] = ['key', 'wrong', 'image'].map((name) => join(folder, name)) as [string, string, string]
  writeFileSync(key, PASSPHRASE)
  writeFileSync(wrong, 'geheim2')
  const luks = ['-o', 'encrypt.format=luks,encrypt.iter-time=1']
  t.equal((await call(['create', '-f', 'qcow2', ...luks, '--secret', key, image, '1M'])).code, 0)
  const bytes = readFileSync(image)
  const header = bytes.indexOf('LUKS\xba\xbe', 0, 'latin1')
  // Without its key material only what is known already opens it.
  const material = header + 512 * bytes.readUInt32BE(header + SLOT_ITERATIONS + 36)
  bytes.fill(0, material, material + 4000 * 64)
  writeFileSync(image, bytes)
  t.equal((await call(['map', '--secret', key, image])).code, 0)
  t.match(await call(['map', '--secret', wrong, image]), { code: 1, err: /opens none of its key slots/ })
  bytes[header + SLOT_ITERATIONS + 4]! ^= 1
  writeFileSync(image, bytes)
  t.match(await call(['map', '--secret', key, image]), { code: 1, err: /opens none/ }, 'another salt, another slot')
})
