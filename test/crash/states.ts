/** The states of a recorded operation: every moment with nothing lost, then so many with losses. */

import type { MemoryStorage } from '../../lib/storage/memory.js'
import type { Recorder } from '../../lib/storage/recording.js'
import { randomFrom } from '../metadata/fixtures/metadata.js'
import type { State } from './scenario.js'

interface Run {
  readonly recorder: Recorder
  readonly seed: number
}

/** @param moments so many at most are looked at without losses: of a run with more changes a part */
export function* operationStates(
  { recorder, seed }: Run,
  losses: number,
  moments: number,
): Generator<{ state: State; files: MemoryStorage[] }> {
  const step = Math.max(1, recorder.length / moments)
  for (let at = 0; at <= recorder.length; at += step) {
    const moment = Math.floor(at)
    yield { state: { moment }, files: recorder.prefix(moment) }
  }
  const random = randomFrom(seed + 7)
  for (let i = 0; i < losses; i++) {
    const moment = Math.floor(random() * (recorder.length + 1))
    const state = { moment, seed: Math.floor(random() * 2 ** 31), tearing: TEARING[i % TEARING.length]! }
    yield { state, files: recorder.crash(moment, state.seed, state.tearing) }
  }
}

const TEARING = [512, 4096, 'none'] as const
