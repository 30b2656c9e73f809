// Version 6 knows no `reset-step`: its address says so. And its `useChat` forgets to tell its chat that what is resumed comes
// whole, so that a page which is shown again would hold the text twice; a chat of the application's own knows it.
import * as ai from 'ai-6';
import * as react from 'react-6';

import { suite } from './suite.mjs';

suite({ ai, react, query: '?reset=cut', ownChat: true });
