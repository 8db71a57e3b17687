// The counts that scripts/test ends with, and the exit code with them, from TAP as tap 21 prints it: also of files that
// crash, hang, run nothing, or skip. The literals were taken from real runs.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const SCRIPTS = new URL('../../../scripts/', import.meta.url)
const REPORTER = fileURLToPath(new URL('tap-reporter.mjs', SCRIPTS))
const CLOSING_LINE = fileURLToPath(new URL('closing-line.mjs', SCRIPTS))

interface Outcome {
  /** What the reporter printed. */
  readonly shown: string
  readonly counts: { passed: number; failed: number; skipped: number }
  /** The last line of a whole run, and its exit code. */
  readonly last: string | undefined
  readonly status: number | null
}

/** Feeds TAP to the reporter, and its counts to what prints the closing line. */
function report(tap: string, failedChecks = 0, tapExitCode = 0): Outcome {
  const cwd = mkdtempSync(join(tmpdir(), 'tap-reporter-'))
  try {
    const program = `import Reporter from ${JSON.stringify(REPORTER)}; process.stdin.pipe(new Reporter()).pipe(process.stdout)`
    const options = { cwd, encoding: 'utf8' } as const
    const shown = spawnSync(process.execPath, ['--input-type=module', '-e', program], { ...options, input: tap })
    if (shown.status !== 0) throw new Error(`the reporter failed: ${shown.stderr}`)
    const counts = JSON.parse(readFileSync(join(cwd, '.tap/counts.json'), 'utf8'))
    const closing = spawnSync(process.execPath, [CLOSING_LINE, `${failedChecks}`, `${tapExitCode}`], options)
    return { shown: shown.stdout, counts, last: closing.stdout.trimEnd().split('\n').at(-1), status: closing.status }
  } finally {
    rmSync(cwd, { recursive: true })
  }
}

const PASSED = `TAP version 14
1..1
# Subtest: build/test/a.test.js
    # Subtest: one
        ok 1 - should be equal
        ok 2 - should be equal
        1..2
    ok 1 - one # time=4.472ms
    
    ok 2 - two # SKIP no corpus
    1..2
    # time=12.917ms
ok 1 - build/test/a.test.js # time=12.917ms

# No coverage generated
# { total: 3, pass: 2, skip: 1 }
# time=430.696ms
`

t.test('a run that passes', async (t) => {
  const { shown, counts, last, status } = report(PASSED)
  t.equal(shown, 'ok     build/test/a.test.js  2 passed, 1 skipped, 13 ms\n')
  t.strictSame(counts, { passed: 2, failed: 0, skipped: 1 })
  t.equal(last, '2 passed, 0 failed, 1 skipped')
  t.equal(status, 0)
})

t.test('a check that failed before the tests', async (t) => {
  const { last, status } = report(PASSED, 2)
  t.equal(last, '2 passed, 2 failed, 1 skipped')
  t.equal(status, 1)
})

t.test('tap ends badly though nothing was counted as failed', async (t) => {
  const { last, status } = report(PASSED, 0, 1)
  t.equal(last, '2 passed, 1 failed, 1 skipped')
  t.equal(status, 1)
})

t.test('a failure is shown with its diagnostics, what passed beside it is not', async (t) => {
  const { shown, last, status } = report(
    `TAP version 14
1..1
# Subtest: build/test/b.test.js
    # Subtest: good
        ok 1 - should be equal
        1..1
    ok 1 - good # time=4.472ms
    
    # Subtest: bad
        ok 1 - should be equal
        not ok 2 - they agree
          ---
          diff: |
            -abd
            +abc
          ...
        
        1..2
    not ok 2 - bad # time=18.572ms
    
    1..2
    # time=33.711ms
not ok 1 - build/test/b.test.js # time=33.711ms
  ---
  command: /usr/bin/node
  exitCode: 1
  signal: null
  ...

# { total: 3, pass: 2, fail: 1 }
`,
    0,
    1,
  )
  t.equal(
    shown,
    `not ok build/test/b.test.js  2 passed, 1 failed, 34 ms
      # Subtest: bad
          not ok 2 - they agree
            ---
            diff: |
              -abd
              +abc
            ...
      not ok 2 - bad # time=18.572ms
      # time=33.711ms
    exitCode: 1
`,
  )
  t.equal(last, '2 passed, 1 failed')
  t.equal(status, 1)
})

t.test('a file that crashes is a failure', async (t) => {
  const { shown, last, status } = report(
    `TAP version 14
1..1
# Subtest: build/test/crash.test.js
    # Subtest: one
        ok 1 - should be equal
    1..0 # no tests found
        # test count(1) != plan(null)
    TAP version 14
    1..0 # no tests found
not ok 1 - build/test/crash.test.js # time=558.247ms
  ---
  exitCode: null
  signal: SIGSEGV
  ...

# { total: 2, pass: 1, fail: 1 }
`,
    0,
    1,
  )
  t.match(shown, /^not ok build\/test\/crash\.test\.js/)
  t.match(shown, /signal: SIGSEGV/)
  t.equal(last, '1 passed, 1 failed')
  t.equal(status, 1)
})

t.test('a file that runs no test is a failure, though tap calls it skipped', async (t) => {
  const { shown, last, status } = report(
    `TAP version 14
1..2
# Subtest: build/test/a.test.js
    ok 1 - a
    1..1
ok 1 - build/test/a.test.js # time=5ms

# Subtest: build/test/empty.test.js
    1..0 # no tests found
ok 2 - build/test/empty.test.js # SKIP no tests found

# { total: 2, pass: 1, skip: 1 }
`,
  )
  t.match(shown, /^not ok build\/test\/empty\.test\.js {2}ran nothing$/m)
  t.equal(last, '1 passed, 1 failed')
  t.equal(status, 1)
})

t.test('a file that skips says why', async (t) => {
  const { shown, last, status } = report(
    `TAP version 14
1..1
# Subtest: build/test/corpus.test.js
    1..0 # the corpus is not here
ok 1 - build/test/corpus.test.js # SKIP the corpus is not here

# { total: 1, skip: 1 }
`,
  )
  t.equal(shown, 'ok     build/test/corpus.test.js  skipped: the corpus is not here\n')
  t.equal(last, '0 passed, 0 failed, 1 skipped')
  t.equal(status, 1, 'and a run in which nothing else ran is no success')
})

t.test('without counts the run has failed', async (t) => {
  const cwd = mkdtempSync(join(tmpdir(), 'tap-reporter-'))
  t.teardown(() => rmSync(cwd, { recursive: true }))
  const { status, stdout } = spawnSync(process.execPath, [CLOSING_LINE, '0', '0'], { cwd, encoding: 'utf8' })
  t.equal(stdout.trim(), '0 passed, 1 failed')
  t.equal(status, 1)
})
