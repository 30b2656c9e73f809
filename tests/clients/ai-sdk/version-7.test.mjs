import * as ai from 'ai-7';
import * as react from 'react-7';

import { suite } from './suite.mjs';

suite({ ai, react });
