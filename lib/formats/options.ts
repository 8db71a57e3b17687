/** `-o name=value` of `create` and `convert`: each format declares a table, this checks and converts the values. */

import { VdiskError } from '../util/errors.js'
import { parseSize } from '../util/sizes.js'

export type OptionSpec = {
  readonly name: string
  /** One line for the help. */
  readonly help: string
} & (
  | { readonly type: 'enum'; readonly values: readonly string[]; readonly default: string }
  | { readonly type: 'size'; readonly default: number; readonly min?: number; readonly max?: number }
  | { readonly type: 'number'; readonly default: number; readonly min: number; readonly max: number }
  | { readonly type: 'boolean'; readonly default: boolean }
  | { readonly type: 'string'; readonly default: string | undefined }
)

export type OptionValue = string | number | boolean | undefined
export type OptionValues = Readonly<Record<string, OptionValue>>

const BOOLEANS: Readonly<Record<string, boolean>> = {
  on: true,
  off: false,
  true: true,
  false: false,
  yes: true,
  no: false,
}

function convert(spec: OptionSpec, text: string): OptionValue {
  const wrong = (expected: string) => new VdiskError('USAGE', `option ${spec.name}=${text}: expected ${expected}`)
  switch (spec.type) {
    case 'enum':
      if (!spec.values.includes(text)) throw wrong(spec.values.join(', '))
      return text
    case 'boolean': {
      const value = BOOLEANS[text]
      if (value === undefined) throw wrong('on or off')
      return value
    }
    case 'size': {
      const value = parseSize(text)
      if (value < (spec.min ?? 0)) throw wrong(`at least ${spec.min}`)
      if (value > (spec.max ?? Number.MAX_SAFE_INTEGER)) throw wrong(`at most ${spec.max}`)
      return value
    }
    case 'number': {
      const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
      if (!(value >= spec.min && value <= spec.max)) throw wrong(`a number from ${spec.min} to ${spec.max}`)
      return value
    }
    default:
      return text
  }
}

/**
 * Checks `name=value` texts, and `name` of what is on or off, against a format's table and fills in the defaults.
 * @throws USAGE for an unknown name, a missing or a wrong value.
 */
export function parseOptions(format: string, specs: readonly OptionSpec[], given: readonly string[]): OptionValues {
  const values: Record<string, OptionValue> = {}
  for (const spec of specs) values[spec.name] = spec.default
  for (const text of given) {
    const at = text.indexOf('=')
    const name = at < 0 ? text : text.slice(0, at)
    const spec = specs.find((s) => s.name === name)
    if (!spec) {
      const known = specs.map((s) => s.name).join(', ') || 'none'
      throw new VdiskError('USAGE', `format ${format} has no option ${name}; it has: ${known}`)
    }
    // As in QEMU, a name alone says that it is on.
    if (at < 0 && spec.type !== 'boolean') throw new VdiskError('USAGE', `option ${name} needs a value: ${name}=…`)
    values[name] = at < 0 ? true : convert(spec, text.slice(at + 1))
  }
  return values
}
