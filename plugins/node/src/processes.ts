/**
 * Several processes behind one socket. Each parses configurations for itself; the first process gives the tokens, so
 * that a call may reach any of them.
 */

import cluster, { Worker } from 'node:cluster'

import { Conf, LocalRegistry, Registry } from './confs'
import type { Server } from './server'
import { Place } from './server'
import type { Pair } from './wire'

type Question = { ask: number; key: string; pairs: readonly Pair[] } | { ask: number; token: number }
type Answer = { answer: number; conf?: Conf }

/** Milliseconds before a process that died is replaced; doubled for each that dies early, up to the last. */
const FIRST_DELAY = 100
const LAST_DELAY = 30_000
/** A process that has lived so long was no early death. */
const SETTLED = 10_000

/** The registry of the first process, asked from another one. */
export class RemoteRegistry implements Registry {
  private last = 0
  private readonly waiting = new Map<number, (conf: Conf | undefined) => void>()

  constructor() {
    process.on('message', (message: Answer) => {
      this.waiting.get(message.answer)?.(message.conf)
      this.waiting.delete(message.answer)
    })
  }

  async assign(key: string, pairs: readonly Pair[]): Promise<Conf> {
    const conf = await this.ask({ ask: ++this.last, key, pairs })
    if (conf === undefined) throw new Error('the first process gave no token')
    return conf
  }

  find(token: number): Promise<Conf | undefined> {
    return this.ask({ ask: ++this.last, token })
  }

  private ask(question: Question): Promise<Conf | undefined> {
    return new Promise((resolve) => {
      this.waiting.set(question.ask, resolve)
      process.send?.(question)
    })
  }
}

/** Runs processes until a signal, and replaces those that die. */
export function supervise(count: number, life: number, path: string, log: (message: string) => void): void {
  const registry = new LocalRegistry(life)
  const place = new Place(path)
  place.clear()
  let stopping = false
  let early = 0

  const fork = (): void => {
    const born = Date.now()
    const worker = cluster.fork({ PORTCULLIS_RUNNER_BIND: place.bound })
    worker.on('message', (question: Question) => void answer(worker, question, registry))
    worker.on('exit', (code, signal) => {
      if (stopping) return
      early = Date.now() - born < SETTLED ? early + 1 : 0
      const delay = Math.min(FIRST_DELAY * 2 ** early, LAST_DELAY)
      log(`process ${worker.process.pid} has ended (${signal ?? code}); another starts in ${delay} ms`)
      // what cannot start at all shall be seen by whoever started us
      if (early > count && Object.keys(cluster.workers ?? {}).length === 0) process.exit(1)
      setTimeout(() => stopping || fork(), delay)
    })
  }
  cluster.on('listening', () => place.show())
  const stop = (): void => {
    if (stopping) return
    stopping = true
    place.leave()
    for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill('SIGTERM')
    const ended = (): void => {
      if (Object.keys(cluster.workers ?? {}).length === 0) process.exit(0)
    }
    cluster.on('exit', ended)
    ended()
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  for (let index = 0; index < count; index++) fork()
}

async function answer(worker: Worker, question: Question, registry: Registry): Promise<void> {
  const conf = await ('key' in question ? registry.assign(question.key, question.pairs) : registry.find(question.token))
  const reply: Answer = { answer: question.ask, conf }
  if (worker.isConnected()) worker.send(reply)
}

/** Ends this process on a signal, when its calls are answered, and when the first process is gone. */
export function endWith(server: Server, leave: () => void): void {
  let stopping = false
  const stop = async (): Promise<void> => {
    if (stopping) return
    stopping = true
    leave()
    await server.stop()
    process.exit(0)
  }
  process.on('SIGTERM', () => void stop())
  process.on('SIGINT', () => void stop())
  process.on('disconnect', () => void stop())
}
