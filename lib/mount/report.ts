/**
 * What the server tells the command that started it, and a helper the server: lines of JSON on a pipe. A server's last is
 * `ready` or `error`.
 */

import { type ErrorCode, VdiskError } from '../util/errors.js'
import type { RegistryEntry } from './registry.js'

export type Message =
  | { readonly type: 'warning'; readonly text: string }
  | { readonly type: 'ready'; readonly entry: RegistryEntry }
  | { readonly type: 'attached'; readonly device: string }
  | { readonly type: 'error'; readonly code: ErrorCode; readonly text: string }

export function encodeMessage(message: Message): string {
  return `${JSON.stringify(message)}\n`
}

export function decodeMessages(text: string): Message[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Message)
}

/** An error as a message. The stack of one that nobody expected goes to the log, not to the user. */
export function errorMessage(error: unknown): Message {
  if (error instanceof VdiskError) return { type: 'error', code: error.code, text: error.message }
  return { type: 'error', code: 'INTERNAL', text: `internal error: ${error instanceof Error ? error.message : error}` }
}
