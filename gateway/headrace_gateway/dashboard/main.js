// One page, two views: the list of jobs at /, one job at /jobs/<id>.

import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";

const page = document.getElementById("page");
const job = location.pathname.match(/^\/jobs\/([^/]+)$/);
if (job) showJob(page, decodeURIComponent(job[1]));
else showJobs(page);
