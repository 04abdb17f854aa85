-- The part of S3 that the library uses: PUT with If-None-Match, GET with ranges, DELETE, ListObjectsV2.
-- A request takes LATENCY seconds longer than its bytes, once, as over a connection that is already open.
local objects = ngx.shared.objects
local server = {}

local function fail(status, code)
    ngx.status = status
    ngx.header["Content-Type"] = "application/xml"
    ngx.print("<Error><Code>" .. code .. "</Code><Message>" .. code .. "</Message></Error>")
end

local function write(name)
    local path = ngx.req.get_body_file()
    if path then
        return assert(os.rename(path, OBJECTS .. name))
    end
    local part = OBJECTS .. "-" .. ngx.var.request_id
    local file = assert(io.open(part, "wb"))
    file:write(ngx.req.get_body_data() or "")
    file:close()
    assert(os.rename(part, OBJECTS .. name))
end

local function put(name)
    if ngx.var.http_expect then ngx.sleep(LATENCY) end -- the client waits a round trip for "100 Continue"
    ngx.req.read_body()
    ngx.sleep(LATENCY)
    local only_if_absent = ngx.var.http_if_none_match == "*"
    ngx.req.clear_header("If-None-Match") -- nginx itself would answer 304
    if only_if_absent then
        if not objects:add("lock:" .. name, true) then return fail(412, "PreconditionFailed") end
    else
        objects:set("lock:" .. name, true)
    end
    write(name)
    objects:set("key:" .. name, true)
    ngx.header["ETag"] = '"' .. ngx.var.request_id .. '"'
end

local function delete(name)
    ngx.sleep(LATENCY)
    objects:delete("key:" .. name)
    os.remove(OBJECTS .. name)
    objects:delete("lock:" .. name)
    ngx.status = 204
end

local function list(bucket, args)
    ngx.sleep(LATENCY)
    local prefix = "key:" .. bucket .. "~" .. (args["prefix"] or ""):gsub("/", "~")
    local after, limit = args["continuation-token"] or args["start-after"] or "", tonumber(args["max-keys"] or 1000)
    local found = {}
    for _, name in ipairs(objects:get_keys(0)) do
        if name:sub(1, #prefix) == prefix then
            local key = name:sub(#bucket + 6):gsub("~", "/")
            if key > after then found[#found + 1] = key end
        end
    end
    table.sort(found)
    local more = #found > limit
    ngx.header["Content-Type"] = "application/xml"
    ngx.print('<?xml version="1.0"?><ListBucketResult><IsTruncated>', tostring(more), "</IsTruncated>")
    if more then ngx.print("<NextContinuationToken>", found[limit], "</NextContinuationToken>") end
    for i = 1, math.min(limit, #found) do
        ngx.print("<Contents><Key>", found[i], "</Key><Size>0</Size></Contents>")
    end
    ngx.print("</ListBucketResult>")
end

function server.handle()
    local bucket, key = ngx.var.uri:match("^/([^/]+)/?(.*)$")
    local method, name = ngx.req.get_method(), key and bucket .. "~" .. key:gsub("/", "~")
    if not bucket then return fail(400, "InvalidRequest") end
    if method == "PUT" and key ~= "" then return put(name) end
    if method == "DELETE" and key ~= "" then return delete(name) end
    if method == "GET" and key == "" then return list(bucket, ngx.req.get_uri_args()) end
    if method ~= "GET" and method ~= "HEAD" then return fail(501, "NotImplemented") end
    ngx.sleep(LATENCY)
    return ngx.exec("/-objects/" .. name)
end

function server.missing()
    fail(404, "NoSuchKey")
end

return server
