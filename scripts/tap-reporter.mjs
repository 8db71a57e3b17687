// How test results are shown: a line for each file, failures whole, and the counts that scripts/test ends with.
// tap loads this as its reporter: TAP goes in, text for people comes out. tap's own reporters redraw a terminal and are
// unreadable in a log.

import { mkdirSync, writeFileSync } from 'node:fs'
import { Transform } from 'node:stream'

const POINT = /^( *)(not )?ok\b(.*)$/
const SUBTEST = /^( *)# Subtest/
const SKIP = /# SKIP\b ?(.*)/i
const TIME = /# time=([\d.]+)ms/
/** tap's own totals, the last comment of a run; parts that are zero are left out. */
const TOTALS = /^# \{ total: \d+(.*)\}/
/** What tap says of a file that ended well and ran nothing. It counts that as skipped; here it is a failure. */
const RAN_NOTHING = 'no tests found'

/** Counts the assertions of one file's TAP: points that do not merely close a subtest. */
export function countPoints(lines) {
  const counts = { passed: 0, failed: 0, skipped: 0 }
  const open = new Set()
  for (const line of lines) {
    const subtest = SUBTEST.exec(line)
    if (subtest) open.add(subtest[1].length)
    const point = POINT.exec(line)
    if (!point || open.delete(point[1].length)) continue
    if (SKIP.test(point[3])) counts.skipped++
    else if (point[2]) counts.failed++
    else counts.passed++
  }
  return counts
}

/** What a failed file's TAP says beside what passed: its failures, and what was printed around them. */
export function withoutPasses(lines) {
  const kept = []
  /** Indentation of each open subtest → where its lines begin among those kept. */
  const starts = new Map()
  for (const line of lines) {
    const subtest = SUBTEST.exec(line)
    if (subtest) starts.set(subtest[1].length, kept.length)
    const point = POINT.exec(line)
    const start = point ? starts.get(point[1].length) : undefined
    if (start !== undefined) starts.delete(point[1].length)
    if (!point || point[2]) kept.push(line)
    else if (start !== undefined) kept.length = start
  }
  return kept.filter((line) => line.trim() !== '' && !/^\s+(1\.\.\d+$|TAP version)/.test(line))
}

export default class Reporter extends Transform {
  #rest = ''
  /** Lines since the last top-level point: what one file printed. */
  #lines = []
  /** True while the diagnostics of a failed top-level point go by; they name the exit code or signal. */
  #diagnostics = false
  #counts = { passed: 0, failed: 0, skipped: 0 }
  /** Files that ran nothing and files that tap skipped so. */
  #empty = 0

  constructor() {
    super({ decodeStrings: false })
  }

  _transform(chunk, _encoding, done) {
    const lines = (this.#rest + chunk.toString()).split('\n')
    this.#rest = lines.pop()
    for (const line of lines) this.#line(line)
    done()
  }

  _flush(done) {
    if (this.#rest) this.#line(this.#rest)
    const { passed, failed, skipped } = this.#counts
    const counts = { passed, failed: failed + this.#empty, skipped: Math.max(0, skipped - this.#empty) }
    mkdirSync('.tap', { recursive: true })
    writeFileSync('.tap/counts.json', `${JSON.stringify(counts)}\n`)
    done()
  }

  #line(line) {
    const point = POINT.exec(line)
    if (point && point[1] === '') this.#file(point[2] === undefined, point[3].trim())
    else if (line.startsWith(' ')) this.#indented(line)
    else {
      this.#diagnostics = false
      const totals = TOTALS.exec(line)
      if (totals) this.#totals(totals[1])
    }
  }

  #indented(line) {
    if (!this.#diagnostics) this.#lines.push(line)
    else if (/^ {2}(exitCode|signal|expired|message|error|tapCaught): (?!null)/.test(line))
      this.push(`    ${line.trim()}\n`)
    if (line === '  ...') this.#diagnostics = false
  }

  /** A top-level point closes one file, or is tap's own (`timeout!`). */
  #file(ok, rest) {
    const name = rest.replace(/^\d+ - /, '').replace(/\s*# .*/, '')
    const skip = SKIP.exec(rest)
    const ranNothing = ok && skip?.[1].startsWith(RAN_NOTHING)
    if (ranNothing) this.#empty++
    const passed = ok && !ranNothing
    const { passed: good, failed: bad, skipped } = countPoints(this.#lines)
    const facts = [`${good} passed`]
    if (bad) facts.push(`${bad} failed`)
    if (skipped) facts.push(`${skipped} skipped`)
    if (skip) facts.splice(0, 3, ranNothing ? 'ran nothing' : `skipped: ${skip[1]}`)
    const time = TIME.exec(rest)
    if (time) facts.push(`${Math.round(Number(time[1]))} ms`)
    this.push(`${passed ? 'ok    ' : 'not ok'} ${name}  ${facts.join(', ')}\n`)
    if (!passed) for (const line of withoutPasses(this.#lines)) this.push(`  ${line}\n`)
    this.#lines = []
    this.#diagnostics = !ok
  }

  #totals(text) {
    const of = (name) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(text)?.[1] ?? 0)
    this.#counts = { passed: of('pass'), failed: of('fail'), skipped: of('skip') + of('todo') }
  }
}
