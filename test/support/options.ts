/** The options of the long campaigns: scripts/soak, crash, fuzz, faults. */

import { parseArgs } from 'node:util'

type Option =
  | { readonly type: 'string'; readonly default?: string }
  | { readonly type: 'boolean'; readonly default: boolean }

/** Those without a default may be undefined. */
type Values<T> = {
  [K in keyof T]: T[K] extends { readonly type: 'boolean' }
    ? boolean
    : T[K] extends { readonly default: string }
      ? string
      : string | undefined
}

/** What the command line says; what it cannot say ends the process, with one line. */
export function campaignOptions<const T extends Readonly<Record<string, Option>>>(options: T): Values<T> {
  try {
    const { values }: { values: object } = parseArgs({ options })
    return values as Values<T>
  } catch (error) {
    console.error(`${(error as Error).message.split('. ')[0]}; --help says what there is`)
    process.exit(2)
  }
}
