/** What plugins see and what of their changes is sent. */

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { Fields, Response } from '../src/http'
import type { Pair } from '../src/wire'
import * as wire from '../src/wire'

const caseless = (name: string): string => name.toLowerCase()
const SENT: Pair[] = [['host', 'a.com'], ['x', '1'], ['x', '2'], ['z', null]]

function changed(change: (fields: Fields) => unknown): Pair[] {
  const fields = new Fields(SENT, caseless)
  change(fields)
  return fields.changed()
}

test('fields are a map', () => {
  const fields = new Fields(SENT, caseless)
  assert.deepEqual([...fields], [['host', 'a.com'], ['x', '2'], ['z', '']])
  assert.deepEqual([fields.get('X'), fields.has('Host'), fields.get('y'), fields.size], ['2', true, undefined, 3])
  assert.deepEqual([fields.getAll('X'), fields.getAll('z'), fields.getAll('y')], [['1', '2'], [''], []])
  assert.deepEqual(fields.changed(), [])
})

test('fields tell their changes', () => {
  assert.deepEqual(changed((fields) => fields.set('X', '3')), [['X', '3']])
  // of two values one remains, even if it is the one that a reader sees
  assert.deepEqual(changed((fields) => fields.set('x', '2')), [['x', '2']])
  assert.deepEqual(changed((fields) => fields.set('n', '1').set('N', '2')), [['N', '2']])
  assert.deepEqual(changed((fields) => fields.delete('X')), [['X', null]])
  assert.deepEqual(changed((fields) => fields.delete('x') && fields.set('x', '1')), [['x', '1']])
  assert.deepEqual(changed((fields) => fields.append('x', '3')), [['x', '1'], ['x', '2'], ['x', '3']])
  assert.deepEqual(changed((fields) => fields.append('n', '1')), [['n', '1']])
  assert.deepEqual(changed((fields) => fields.clear()), [['host', null], ['x', null], ['z', null]])
  assert.deepEqual(changed((fields) => fields.set('n', 1 as unknown as string)), [['n', '1']])
})

test('fields show their changes', () => {
  const fields = new Fields(SENT, caseless)
  fields.set('X', '3').delete('HOST')
  assert.deepEqual([...fields], [['z', ''], ['X', '3']])
  assert.deepEqual([fields.get('x'), fields.getAll('x'), fields.getAll('host')], ['3', ['3'], []])
})

test('an answer', () => {
  const read = (response: Response): unknown[] => {
    const root = wire.Table.root(response.reply(7).subarray(4))
    const stop = root.table(2)
    return [root.u32(0), stop?.u16(0), stop?.pairs(1), stop?.blob(2)?.toString() ?? null]
  }
  const answer = (fields: Partial<Response>): Response => Object.assign(new Response(), fields)
  assert.equal(new Response().changed, false)
  assert.deepEqual(read(answer({ status: 403 })), [7, 403, [], null])
  assert.deepEqual(read(answer({ body: 'ü' })), [7, 200, [], 'ü'])
  assert.deepEqual(read(answer({ headers: new Map([['A', 'b']]) })), [7, 200, [['A', 'b']], null])
  assert.deepEqual(read(answer({ headers: { A: 'b' } })), [7, 200, [['A', 'b']], null])
  const twice: [string, string][] = [['Set-Cookie', 'a'], ['Set-Cookie', 'b']]
  assert.deepEqual(read(answer({ headers: twice })), [7, 200, twice, null])
  assert.throws(() => answer({ status: 99 }).reply(1), RangeError)
})
