/**
 * Completion scripts for bash, zsh and fish, rendered from the tables of commands and options. What a value can be
 * follows from what the help calls it: `FMT` is a format, `DIR` a folder, `human|json` one of these words.
 */

import { formats } from '../formats/registry.js'
import { VdiskError } from '../util/errors.js'
import { COMMANDS, type Command, type Positional } from './commands.js'
import { type OptionSpec, optionsOf } from './options.js'

type Values = 'files' | 'folders' | readonly string[]

const KINDS: Readonly<Record<string, Values>> = {
  FMT: formats.map((format) => format.name),
  DIR: 'folders',
  MOUNTPOINT: 'folders',
  FILE: 'files',
  IMAGE: 'files',
  DEVICE: 'files',
}

/** What can be typed for a value of this name; no words where nobody can know. */
export function valuesOf(name: string): Values {
  if (Object.hasOwn(KINDS, name)) return KINDS[name]!
  return /^[a-z-]+(\|[a-z-]+)+$/.test(name) ? name.split('|') : []
}

const positionalValues = ({ name, choices }: Positional): Values => choices ?? valuesOf(name)

const PROGRAM_OPTIONS = [
  ['help', 'h', 'all commands'],
  ['version', 'V', 'the version'],
] as const

const dashed = ({ name, short }: OptionSpec): string[] => (short ? [`--${name}`, `-${short}`] : [`--${name}`])

/** Shells whose script can be made. */
export const SHELLS: Readonly<Record<string, () => string>> = { bash, zsh, fish }

/** The script for a shell. @throws USAGE */
export function completionScript(shell: string): string {
  const make = Object.hasOwn(SHELLS, shell) ? SHELLS[shell] : undefined
  if (!make) throw new VdiskError('USAGE', `no completion for ${shell}; there is: ${Object.keys(SHELLS).join(', ')}`)
  return make()
}

/** The bash command that completes values; a `case` branch each. */
function bashValues(values: Values): string {
  if (values === 'files') return '_vdiskfs_files'
  if (values === 'folders') return '_vdiskfs_folders'
  return `_vdiskfs_words '${values.join(' ')}'`
}

function bashCommand(command: Command): string {
  const options = optionsOf(command.name)
  const withValue = options.filter((option) => option.value)
  const values = withValue
    .map((option) => `        ${dashed(option).join('|')}) ${bashValues(valuesOf(option.value!))}; return ;;`)
    .join('\n')
  const positionals = command.positionals
    .map((positional, i) => `        ${i}) ${bashValues(positionalValues(positional))} ;;`)
    .join('\n')
  return `    ${command.name})
      valued=' ${withValue.flatMap(dashed).join(' ')} '
      options='${options.flatMap(dashed).join(' ')}'
      case $previous in
${values || '        --) ;;'}
      esac
      _vdiskfs_option && return
      _vdiskfs_count
      case $count in
${positionals || '        -1) ;;'}
      esac
      ;;`
}

function bash(): string {
  return `# bash completion for vdiskfs, made by: vdiskfs completion bash

_vdiskfs_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current"); }
_vdiskfs_files() { compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current"); }
_vdiskfs_folders() { compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$current"); }

# Completes an option, where one was begun.
_vdiskfs_option() {
  [[ $current == -* ]] || return 1
  _vdiskfs_words "$options"
}

# Counts the words before this one that are no options nor their values.
_vdiskfs_count() {
  local i word
  count=0
  for ((i = 2; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    if [[ $word == = ]]; then ((i++)); continue; fi
    if [[ $word == -* ]]; then
      if [[ $valued == *" $word "* && \${COMP_WORDS[i + 1]-} != = ]]; then ((i++)); fi
      continue
    fi
    ((count++))
  done
}

_vdiskfs() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]} valued options count
  COMPREPLY=()
  # Readline makes a word of its own of the = in --name=value.
  if [[ $current == = ]]; then
    current=
  elif [[ $previous == = ]]; then
    previous=\${COMP_WORDS[COMP_CWORD - 2]}
  fi
  if ((COMP_CWORD == 1)); then
    _vdiskfs_words '${[...COMMANDS.map(({ name }) => name), 'help', ...PROGRAM_OPTIONS.map(([name]) => `--${name}`)].join(' ')}'
    return
  fi
  case \${COMP_WORDS[1]} in
    help) _vdiskfs_words '${COMMANDS.map(({ name }) => name).join(' ')}' ;;
${COMMANDS.map(bashCommand).join('\n')}
  esac
}
complete -F _vdiskfs vdiskfs
`
}

/** Text inside of single quotes in zsh and fish. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`
/** What `_arguments` gives a meaning to. */
const zshText = (text: string): string => text.replace(/[[\]:\\]/g, '\\$&')

function zshAction(values: Values): string {
  if (values === 'files') return '_files'
  if (values === 'folders') return '_files -/'
  return values.length > 0 ? `(${values.join(' ')})` : ' '
}

function zshOption({ name, short, value, repeats, help }: OptionSpec): string[] {
  const tail = `[${zshText(help)}]${value ? `:${zshText(value)}:${zshAction(valuesOf(value))}` : ''}`
  const names = [`--${name}${value ? '=' : ''}`, ...(short ? [`-${short}${value ? '+' : ''}`] : [])]
  const excludes = repeats ? '*' : `(--${name}${short ? ` -${short}` : ''})`
  return names.map((spelling) => quoted(`${excludes}${spelling}${tail}`))
}

function zshCommand(command: Command): string {
  const specs = [
    ...optionsOf(command.name).flatMap(zshOption),
    ...command.positionals.map((positional, i) =>
      quoted(`${i + 1}:${positional.optional ? ':' : ''}${positional.name}:${zshAction(positionalValues(positional))}`),
    ),
  ]
  return `    ${command.name})\n      _arguments -s \\\n        ${specs.join(' \\\n        ')}\n      ;;`
}

function zsh(): string {
  const commands = COMMANDS.map(({ name, summary }) => `      ${quoted(`${name}:${zshText(summary)}`)}`).join('\n')
  return `#compdef vdiskfs
# zsh completion for vdiskfs, made by: vdiskfs completion zsh

_vdiskfs() {
  if ((CURRENT == 2)); then
    local -a commands
    commands=(
${commands}
      'help:what a command does'
    )
    _describe command commands
    _arguments -s '(- *)'{-h,--help}'[all commands]' '(- *)'{-V,--version}'[the version]'
    return
  fi
  local command=$words[2]
  shift words
  ((CURRENT--))
  case $command in
    help) _arguments '1:command:(${COMMANDS.map(({ name }) => name).join(' ')})' ;;
${COMMANDS.map(zshCommand).join('\n')}
  esac
}

if [ "$funcstack[1]" = _vdiskfs ]; then _vdiskfs "$@"; else compdef _vdiskfs vdiskfs; fi
`
}

function fishValues(values: Values): string {
  if (values === 'files') return '-r -F'
  if (values === 'folders') return "-x -a '(__fish_complete_directories)'"
  return values.length > 0 ? `-x -a ${quoted(values.join(' '))}` : '-x'
}

function fishCommand(command: Command): string[] {
  const when = `-n '__fish_seen_subcommand_from ${command.name}'`
  const options = optionsOf(command.name).map(({ name, short, value, help }) =>
    [
      `complete -c vdiskfs ${when} -l ${name}`,
      ...(short ? [`-s ${short}`] : []),
      ...(value ? [fishValues(valuesOf(value))] : []),
      `-d ${quoted(help)}`,
    ].join(' '),
  )
  const kinds = command.positionals.map(positionalValues)
  const words = kinds.flatMap((kind) => (typeof kind === 'string' ? [] : kind))
  const positionals = [
    ...(words.length > 0 ? [`complete -c vdiskfs ${when} -a ${quoted(words.join(' '))}`] : []),
    ...(kinds.includes('files') ? [`complete -c vdiskfs ${when} -F`] : []),
    ...(kinds.includes('folders') ? [`complete -c vdiskfs ${when} -a '(__fish_complete_directories)'`] : []),
  ]
  return [...options, ...positionals]
}

function fish(): string {
  const first = '-n __fish_use_subcommand'
  return [
    '# fish completion for vdiskfs, made by: vdiskfs completion fish',
    'complete -c vdiskfs -f',
    ...COMMANDS.map(({ name, summary }) => `complete -c vdiskfs ${first} -a ${name} -d ${quoted(summary)}`),
    `complete -c vdiskfs ${first} -a help -d 'what a command does'`,
    ...PROGRAM_OPTIONS.map(
      ([name, short, help]) => `complete -c vdiskfs ${first} -l ${name} -s ${short} -d ${quoted(help)}`,
    ),
    ...COMMANDS.flatMap(fishCommand),
    '',
  ].join('\n')
}
