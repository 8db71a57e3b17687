/**
 * The words of a command line, sorted into options and positionals.
 *
 * yargs does the sorting. Before it, `prepare` goes over the words once with the table of options: it refuses unknown
 * options with a suggestion, separates a short option from a value that is glued to it (`-fvhd`, as getopt takes it),
 * and marks values that begin with a minus sign and a digit (`-37M`), which yargs would take for options. Everything
 * stays text: `0x10` and `1e3` are names of files, if somebody calls files that.
 */

import yargs from 'yargs'
import { VdiskError } from '../util/errors.js'
import type { Command } from './commands.js'
import { type OptionSpec, optionsOf } from './options.js'
import { nearest } from './suggest.js'

/** Cannot occur in a command line, as arguments end at it. */
const MARK = '\0'
const NEGATIVE = /^-[.\d]/

const usage = (message: string) => new VdiskError('USAGE', message)
const unmark = (text: string) => (text.startsWith(MARK) ? text.slice(1) : text)
const mark = (text: string) => (text.startsWith('-') ? MARK + text : text)

/** What was given to a command, by the long names of its options. */
export class Arguments {
  readonly positionals: readonly string[]
  readonly #values: ReadonlyMap<string, readonly string[]>

  constructor(positionals: readonly string[], values: ReadonlyMap<string, readonly string[]>) {
    this.positionals = positionals
    this.#values = values
  }

  has(name: string): boolean {
    return this.#values.has(name)
  }

  /** The value of an option; of one given several times, the last. */
  value(name: string): string | undefined {
    return this.#values.get(name)?.at(-1)
  }

  /** All values of an option, in order. */
  values(name: string): readonly string[] {
    return this.#values.get(name) ?? []
  }

  /** All values, each split at its commas; two commas stand for one that does not split, as in qemu-img. */
  list(name: string): string[] {
    return this.values(name).flatMap(splitCommas)
  }
}

/** Splits `a=1,b=2`; `,,` is a comma. Empty parts are left out. */
export function splitCommas(text: string): string[] {
  return text
    .replaceAll(',,', MARK)
    .split(',')
    .filter((part) => part !== '')
    .map((part) => part.replaceAll(MARK, ','))
}

/** Sorts the words behind the command's name. @throws USAGE */
export function parseArguments(command: Command, words: readonly string[]): Arguments {
  const specs = optionsOf(command.name)
  const parsed = yargs(prepare(command.name, specs, words))
    .help(false)
    .version(false)
    .exitProcess(false)
    .showHelpOnFail(false)
    .detectLocale(false)
    .parserConfiguration({
      'boolean-negation': false,
      'camel-case-expansion': false,
      'dot-notation': false,
      'parse-numbers': false,
      'parse-positional-numbers': false,
    })
    .options(Object.fromEntries(specs.map(yargsOption)))
    .strictOptions()
    .fail((message: string | undefined, error: Error | undefined) => {
      throw usage(explain(command.name, message ?? String(error)))
    })
    .parseSync()
  const values = new Map<string, string[]>()
  for (const { name, value, choices, emptyMeans } of specs) {
    const given = parsed[name]
    if (given === undefined || given === false) continue
    const texts = (Array.isArray(given) ? given : [given]).map((text) => (value ? unmark(String(text)) : ''))
    if (value && !emptyMeans && texts.includes('')) throw usage(`option --${name} needs a value: ${value}`)
    const wrong = choices && texts.find((text) => !choices.includes(text))
    if (wrong !== undefined) throw usage(`--${name} ${wrong}: expected ${choices!.join(', ')}`)
    values.set(name, texts)
  }
  return new Arguments(
    parsed._.map((text) => unmark(String(text))),
    values,
  )
}

function yargsOption({ name, short, value }: OptionSpec) {
  const type: 'string' | 'boolean' = value ? 'string' : 'boolean'
  return [name, { ...(short ? { alias: short } : {}), type, nargs: value ? 1 : 0 }] as const
}

/** What yargs still finds wrong, in our words. */
function explain(command: string, message: string): string {
  const missing = /^Not enough arguments following: (.*)/.exec(message)
  if (missing) return `option ${dashed(missing[1]!)} needs a value`
  const unexpected = /^Argument unexpected for: (.*)/.exec(message)
  if (unexpected) return `option ${dashed(unexpected[1]!)} takes no value`
  return `${command}: ${message}`
}

const dashed = (name: string) => (name.length === 1 ? `-${name}` : `--${name}`)

/** Checks the options of a command line by the table and spells them so that yargs cannot misread them. */
function prepare(command: string, specs: readonly OptionSpec[], words: readonly string[]): string[] {
  const prepared: string[] = []
  let wantsValue = false
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!
    if (word === '--') return [...prepared, ...words.slice(i)]
    if (NEGATIVE.test(word) || (wantsValue && !isOption(specs, word))) {
      prepared.push(mark(word))
      wantsValue = false
    } else if (wantsValue || word === '-' || !word.startsWith('-')) {
      prepared.push(word)
      wantsValue = false
    } else if (word.startsWith('--')) {
      wantsValue = prepareLong(command, specs, word, prepared)
    } else {
      wantsValue = prepareShort(command, specs, word, prepared)
    }
  }
  return prepared
}

/** Whether a word is spelled as an option that there is; behind one that needs a value, no other word is taken for one. */
function isOption(specs: readonly OptionSpec[], word: string): boolean {
  const name = word.replace(/=.*/s, '')
  return specs.some((spec) => name === `--${spec.name}` || word === `-${spec.short}`)
}

/** @returns whether the next word is the option's value */
function prepareLong(command: string, specs: readonly OptionSpec[], word: string, prepared: string[]): boolean {
  const equals = word.indexOf('=')
  const name = word.slice(2, equals < 0 ? undefined : equals)
  const spec = specs.find((s) => s.name === name)
  if (!spec) {
    const near = nearest(
      name,
      specs.map((s) => s.name),
    )
    throw usage(
      `${command} has no option --${name}${near ? `; did you mean --${near}?` : ''} (vdiskfs ${command} --help)`,
    )
  }
  prepared.push(word)
  return spec.value !== undefined && equals < 0
}

/** Takes `-rf`, `-fvhd`, `-f=vhd` apart. @returns whether the next word is the option's value */
function prepareShort(command: string, specs: readonly OptionSpec[], word: string, prepared: string[]): boolean {
  for (let at = 1; at < word.length; at++) {
    const spec = specs.find((s) => s.short === word[at])
    if (!spec) throw usage(`${command} has no option -${word[at]} (vdiskfs ${command} --help)`)
    prepared.push(`--${spec.name}`)
    if (spec.value === undefined) continue
    const rest = word.slice(at + 1).replace(/^=/, '')
    if (at + 1 === word.length) return true
    prepared[prepared.length - 1] += `=${rest}`
    return false
  }
  return false
}
