/** All crash states of one kind of image, or of one family: what the tests try a part of, and scripts/crash any number. */

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Variant } from '../model/variants.js'
import { checkChain, recordChains } from './chains.js'
import type { Kind } from './families.js'
import { lives } from './lives.js'
import { checkOperation, checkOperationGoingOn, checkOperationWithQemu, recordOperations } from './operations.js'
import { checkGoingOn, checkState, checkWithQemu, describe, recordLife, statesOf } from './scenario.js'
import { operationStates } from './states.js'

export interface Plan {
  /** Of a life. */
  readonly operations: number
  /** States with losses: of a life, of an operation, of an operation on a chain. */
  readonly losses: { readonly life: number; readonly operation: number; readonly chain: number }
  /** States without losses of an operation; of a life it is all of them. */
  readonly moments: number
  /** Every so many states: going on from there, and QEMU's opinion. */
  readonly goingOn: number
  readonly qemu: number
  /** Operations too that take long. */
  readonly long: boolean
}

/** What is wrong with each state; undefined: nothing. */
type Results = Generator<string | undefined>

/** Lives of writes of every beginning. */
export function* sweepLives(variant: Variant, seed: number, plan: Plan): Results {
  let count = 0
  for (const life of lives) {
    if (life.long && !plan.long) continue
    const recorded = recordLife(variant, life, seed, plan.operations)
    if (!recorded) continue
    for (const state of statesOf(recorded, plan.losses.life)) {
      const wrong =
        checkState(recorded, state) ??
        (count % plan.goingOn === 0 ? checkGoingOn(recorded, state) : undefined) ??
        (count % plan.qemu === 0 ? checkWithQemu(recorded, state) : undefined)
      count++
      yield wrong && `${life.name}: ${wrong}\n${describe(recorded, state)}`
    }
  }
}

/** What is not writing, behind a life. */
export function* sweepOperations(variant: Variant, seed: number, plan: Plan): Results {
  let count = 0
  for (const run of recordOperations(variant, seed, plan.long))
    for (const { state, files } of operationStates(run, plan.losses.operation, plan.moments)) {
      const wrong =
        checkOperation(run, files) ??
        (count % plan.qemu === 0 ? checkOperationWithQemu(run, files) : undefined) ??
        (count % plan.goingOn === 0 ? checkOperationGoingOn(run, files) : undefined)
      count++
      yield wrong && failure({ ...run, name: `${run.name} of ${variant.name}` }, state, wrong)
    }
}

/** What works on an image and its parents. */
export function* sweepChains(kind: Kind, seed: number, plan: Plan): Results {
  const base = mkdtempSync(join(tmpdir(), 'vdiskfs-test-'))
  let count = 0
  const folders = () => {
    const folder = join(base, String(count))
    mkdirSync(folder)
    return folder
  }
  try {
    for (const run of recordChains(kind, seed, folders))
      for (const { state, files } of operationStates(run, plan.losses.chain, plan.moments)) {
        const depth = { again: count % plan.goingOn === 0, qemu: count % plan.qemu === 0 }
        const wrong = checkChain(run, files, state.moment === run.recorder.length, depth)
        count++
        yield wrong && failure(run, state, wrong)
      }
  } finally {
    rmSync(base, { recursive: true, force: true })
  }
}

interface Run {
  readonly name: string
  readonly seed: number
  readonly recorder: { describe(from?: number, to?: number): string[] }
}

function failure({ name, seed, recorder }: Run, state: { readonly moment: number }, wrong: string): string {
  const lines = recorder.describe(Math.max(0, state.moment - 12), state.moment)
  return `${name}, seed ${seed}, state ${JSON.stringify(state)}: ${wrong}; before it:\n${lines.join('\n')}`
}
