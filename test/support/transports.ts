/**
 * Tests of mounts run over every transport of the table. While such a test runs, each `vdiskfs mount` that it starts
 * by `run.ts` is of its transport, unless the test says another.
 */

import { AsyncLocalStorage } from 'node:async_hooks'
import type { Test } from 'tap'
import { type Ability, findTransport, TRANSPORT_NAMES, TRANSPORTS } from '../../lib/mount/transports.js'
import { canMount } from './mounts.js'

const current = new AsyncLocalStorage<string>()

/** The transport of the running test. */
export const currentTransport = (): string => current.getStore() ?? TRANSPORT_NAMES[0]!

/** The words of a command line, with the running test's transport. */
export function withTransport(args: readonly string[]): readonly string[] {
  const transport = current.getStore()
  if (args[0] !== 'mount' || transport === undefined || args.some((arg) => arg.startsWith('--transport'))) return args
  return ['mount', '--transport', transport, ...args.slice(1)]
}

/** Why a transport cannot be tested here; undefined where it can. */
async function obstacle(transport: string, needs: readonly Ability[]): Promise<string | undefined> {
  if (!canMount) return 'needs root and /dev/fuse'
  const missing = needs.filter((ability) => !TRANSPORTS[transport]!.abilities.includes(ability))
  if (missing.length > 0) return `${transport} has no ${missing.join(', ')}`
  try {
    await findTransport(transport)
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

/**
 * One test for each transport. Skipped, visibly, for those that cannot do what it needs, or cannot be used here.
 * @param needs beyond reading, writing and flushing
 */
export async function overTransports(
  t: Test,
  name: string,
  needs: readonly Ability[],
  work: (t: Test) => Promise<void>,
): Promise<void> {
  for (const transport of TRANSPORT_NAMES) {
    const skip = await obstacle(transport, needs)
    t.test(`${transport}: ${name}`, skip === undefined ? {} : { skip }, (t) => current.run(transport, () => work(t)))
  }
}
