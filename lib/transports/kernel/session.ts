/**
 * The FUSE protocol without a device: a request in `session.request`, one call of `handle`, the reply in
 * `session.reply`. Requests come from the kernel, yet every length and offset in them is checked, and nothing that one
 * may hold makes `handle` throw.
 */

import { constants } from 'node:os'
import { anyTrace, makeTrace, traceRequest } from '../../util/trace.js'
import { errnoOf } from '../errno.js'
import { RequestKind, RequestRecorder } from '../statistics.js'
import type { FileTree } from '../transport.js'
import { CONTENT_OPERATIONS } from './contents.js'
import type { Negotiated } from './init.js'
import { ANSWERABLE_SIZE, Reply, Request } from './messages.js'
import { NODE_OPERATIONS } from './nodes.js'
import { type CachePolicy, RecentOpens } from './opens.js'
import { NO_REPLY, type Operation } from './operation.js'
import type { Parking } from './parking.js'
import { IN_HEADER_SIZE, InHeader, OUT_HEADER_SIZE, ReadIn } from './protocol.js'
import { SPLICE_LEAST, type Splicer } from './splicer.js'
import { type Answer, Syncs } from './syncs.js'

const trace = makeTrace('fuse')

const { EINVAL, ENOSYS } = constants.errno

/** Memory that the workers of one mount share, made once by `shareState`. */
export interface SharedState {
  readonly syncs: SharedArrayBuffer
  readonly opens: SharedArrayBuffer
  readonly statistics: SharedArrayBuffer
}

/** For workers with the numbers 1 to `workers`. */
export const shareState = (workers: number): SharedState => ({
  syncs: Syncs.allocate(),
  opens: RecentOpens.allocate(),
  statistics: RequestRecorder.allocate(workers + 1),
})

export interface SessionOptions {
  readonly tree: FileTree
  readonly negotiated: Negotiated
  readonly shared: SharedState
  /** This worker's number. */
  readonly thread: number
  /** Gives the reply of another request than the one in hand: of an fsync that was parked. Must not throw. */
  readonly answer: Answer
  readonly cachePolicy?: CachePolicy | undefined
  /** Sends large READs without copying them; without it they are copied. */
  readonly splicer?: Splicer | undefined
  /** Is told of commits. */
  readonly parking?: Parking | undefined
}

const OPERATIONS: (Operation | undefined)[] = []
for (const [opcode, operation] of [...NODE_OPERATIONS, ...CONTENT_OPERATIONS]) OPERATIONS[opcode] = operation

/** The protocol's side of one worker. */
export class Session {
  readonly request = new Request()
  readonly reply = new Reply()
  readonly tree: FileTree
  readonly negotiated: Negotiated
  readonly syncs: Syncs
  readonly opens: RecentOpens
  readonly answer: Answer
  readonly cachePolicy: CachePolicy
  /** `tree.flush` as an errno, made once. */
  readonly flush: () => number
  /** Set by an operation: the bytes that it moved. */
  moved = 0
  /** Set by an operation: somebody else answers the request, and counts it then. */
  answeredElsewhere = false
  readonly #recorder: RequestRecorder
  #operation: Operation | undefined
  #failed = false
  readonly #traced = anyTrace()
  readonly #splicer: Splicer | undefined
  readonly #sendPieces: () => boolean
  #spliced = 0

  constructor({ tree, negotiated, shared, thread, answer, cachePolicy = 'cached', splicer, parking }: SessionOptions) {
    this.tree = tree
    this.negotiated = negotiated
    this.syncs = new Syncs(shared.syncs, thread)
    this.opens = new RecentOpens(shared.opens)
    const recorder = new RequestRecorder(shared.statistics, thread)
    this.#recorder = recorder
    this.answer = (first, second, errno, waitedMs) => {
      answer(first, second, errno)
      if (waitedMs !== undefined) recorder.record(RequestKind.SYNC, 0, waitedMs, errno !== 0)
    }
    this.cachePolicy = cachePolicy
    this.#splicer = splicer
    this.#sendPieces = () => {
      const { request, reply } = this
      reply.header(OUT_HEADER_SIZE + this.#spliced, 0, request.uniqueFirst, request.uniqueSecond)
      return splicer!.send(reply.bytes, this.#spliced)
    }
    const flush = () => {
      try {
        tree.flush()
        return 0
      } catch (error) {
        return errnoOf(error)
      }
    }
    this.flush = parking ? () => parking.during(flush) : flush
  }

  /** The inode that the request is about. */
  get node(): number {
    return this.request.u64(InHeader.nodeid)
  }

  /**
   * Serves the request of `length` bytes that is in `request`.
   * @returns the length of the reply in `reply`; 0 where there is none.
   */
  handle(length: number): number {
    const { request } = this
    this.#operation = undefined
    if (length < ANSWERABLE_SIZE) return 0
    const operation = OPERATIONS[request.u32(InHeader.opcode)]
    if (this.#traced) this.#traceBegin(operation, length)
    let result = -ENOSYS
    this.moved = 0
    this.answeredElsewhere = false
    if (operation !== undefined) {
      if (length < operation.size || length !== request.u32(InHeader.len)) result = -EINVAL
      else {
        try {
          if (operation.endsOpening) this.opens.used(request.u32(InHeader.pid))
          result = operation.run(this, length)
        } catch (error) {
          result = -errnoOf(error)
        }
      }
      if (operation.silent && result < 0) result = NO_REPLY
    } else if (length < IN_HEADER_SIZE) result = -EINVAL
    this.#operation = operation
    this.#failed = result < 0 && result !== NO_REPLY
    if (this.#traced) this.#traceEnd(operation, result)
    if (result === NO_REPLY) return 0
    if (result < 0) return this.fail(-result)
    return this.reply.header(OUT_HEADER_SIZE + result, 0, request.uniqueFirst, request.uniqueSecond)
  }

  /** Counts the request that was handled last, which took `ms` milliseconds. */
  record(ms: number): void {
    const operation = this.#operation
    if (operation === undefined || operation.silent || this.answeredElsewhere) return
    this.#recorder.record(operation.kind ?? RequestKind.OTHER, this.moved, ms, this.#failed)
  }

  /** Makes the reply to the request in hand an error. @returns its length */
  fail(errno: number): number {
    return this.reply.header(OUT_HEADER_SIZE, errno, this.request.uniqueFirst, this.request.uniqueSecond)
  }

  /** Answers a READ straight from the host's files. @returns false where that cannot be done, and was not. */
  splice(node: number, length: number, offset: number): boolean {
    if (this.#splicer === undefined || length < SPLICE_LEAST || this.tree.lend === undefined) return false
    this.#spliced = length
    return this.tree.lend(node, length, offset, this.#splicer.pieces, this.#sendPieces)
  }

  #traceBegin(operation: Operation | undefined, length: number): void {
    const { request } = this
    traceRequest(request.u64(InHeader.unique))
    const name = operation?.name ?? `opcode ${request.u32(InHeader.opcode)}`
    const range =
      operation?.ranged && length >= operation.size
        ? ` ${request.u32(ReadIn.size)} at ${request.u64(ReadIn.offset)}`
        : ''
    trace('%s inode %d%s', name, this.node, range)
  }

  #traceEnd(operation: Operation | undefined, result: number): void {
    const sent = this.moved > 0 ? `${this.moved} bytes` : operation?.silent ? 'needs none' : 'sent, or parked'
    const outcome = result === NO_REPLY ? sent : result < 0 ? `errno ${-result}` : `${result} bytes`
    trace('reply: %s', outcome)
    traceRequest(0)
  }
}
